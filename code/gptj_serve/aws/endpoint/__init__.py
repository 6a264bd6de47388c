"""Endpoints: what exists of one, and how it is scaled, watched and removed."""
