"""Static batching, and the engines that use it."""
