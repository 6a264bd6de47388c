"""What is measured: servers at a URL, SageMaker endpoints, and servers that are started here."""
