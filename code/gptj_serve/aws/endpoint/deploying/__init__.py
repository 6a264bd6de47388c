"""What ``scripts/deploy`` consists of: checks, requests, and rolling them out."""
