"""Packed weights: their layout, and how a checkpoint's tensors get there."""
