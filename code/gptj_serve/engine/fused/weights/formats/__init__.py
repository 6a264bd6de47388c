"""How matrices of weights are stored: one file a format, with its bytes, its slots and its product."""
