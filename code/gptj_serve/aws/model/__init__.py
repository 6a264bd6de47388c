"""The model's files: found, checked, converted, uploaded to S3, and looked at there."""
