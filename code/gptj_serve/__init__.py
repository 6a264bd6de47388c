"""Serves GPT-J over HTTP: an engine process (token ids) behind a front (text)."""

__version__ = "0.1.0"
