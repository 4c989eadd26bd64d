"""Checks of a source: its text, its computation, and what it does when it runs."""
