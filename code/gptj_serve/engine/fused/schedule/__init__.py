"""Continuous batching: what a step computes. No torch here."""
