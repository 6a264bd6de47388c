"""Token ids in, token ids out: scheduler, sampler, loader and backends."""
