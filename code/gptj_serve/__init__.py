"""Serves GPT-J over HTTP: an engine process works on token ids, and a front before it on text."""

__version__ = "0.1.0"
