"""Measures servers: what is asked of them, in which order, and what comes of it."""
