"""Asks a service: builds the question, reaches the service, and shows its answer."""
