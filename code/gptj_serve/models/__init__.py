"""What a model directory holds: its architecture, its files, its checks."""
