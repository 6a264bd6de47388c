"""Endpoints: what exists of one, how it scales, how it is watched and removed."""
