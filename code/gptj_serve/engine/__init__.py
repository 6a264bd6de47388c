"""The engine, which turns token ids into token ids: scheduler, sampler, loader and backends."""
