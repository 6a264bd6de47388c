"""The parts of ``scripts/deploy``: its checks, its requests, and the roll-out."""
