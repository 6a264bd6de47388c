"""The model's files: they are found, checked, converted, uploaded to S3, and looked at there."""
