"""From logits to tokens: what every engine's sampling shares."""
