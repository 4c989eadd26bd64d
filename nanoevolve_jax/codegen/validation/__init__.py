"""Checks of a source: its text, its computation and its results."""
