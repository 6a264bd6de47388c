"""The CUDA kernels, their twin in plain PyTorch, and what the model asks of both."""
