"""Asking a service: the question, the ways to reach one, and showing its answer."""
