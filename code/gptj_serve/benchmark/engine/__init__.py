"""Measures the fused engine without serving, and writes a model of random weights for it."""
