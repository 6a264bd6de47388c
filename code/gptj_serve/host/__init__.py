"""What the machine below is like: the GPU's driver, the container's limits, its ports."""
