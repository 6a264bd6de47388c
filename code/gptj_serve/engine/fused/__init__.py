"""The `fused` engine: our own decode path, a paged KV cache and continuous batching."""
