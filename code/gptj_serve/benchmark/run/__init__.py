"""Measures servers: decides what is asked of them and in which order, asks, and keeps the answers' times."""
