"""Turns text into text: schemas, tokenisation, the engine's client and the fronts."""
