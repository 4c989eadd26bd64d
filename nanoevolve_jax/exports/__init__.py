"""A policy in forms that others can use: a JSON file, a file for optax, a file for PyTorch."""
