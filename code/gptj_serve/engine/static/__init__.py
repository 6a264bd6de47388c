"""Static batching, and the engines that work so."""
