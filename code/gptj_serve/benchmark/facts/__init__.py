"""Finds out what a file of results says beside the runs: machine, model, memory, phases of a start."""
