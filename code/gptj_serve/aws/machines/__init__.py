"""Instance types: what they have, what fits them, what they can do, and what that costs."""
