"""What surrounds the service: the GPU's driver, limits, ports, others' files, other images' settings."""
