"""DeepSpeed's injected kernels, driven block by block."""
