"""Exports of a policy as a JSON file, a Python file for optax or a Python file for PyTorch."""
