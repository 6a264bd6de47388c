"""From logits to tokens: the sampling that all engines share."""
