"""The fused engine measured without serving, and a model of random weights for it."""
