"""Measures a running service from outside, over HTTP."""
