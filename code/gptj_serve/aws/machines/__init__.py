"""Instance types: what they have, what fits on them, how fast they are, and what that costs."""
