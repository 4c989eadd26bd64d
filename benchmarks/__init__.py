"""Benchmarks, with one command per file. Results are kept in `results/`."""
