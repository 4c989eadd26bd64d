"""Benchmarks: one command per file. Their results are kept in `results/`."""
