"""Text in, text out: schemas, tokenisation, the engine client and the fronts."""
