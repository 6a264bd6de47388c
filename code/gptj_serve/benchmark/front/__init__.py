"""Measures what the fronts add, over an engine without a model."""
