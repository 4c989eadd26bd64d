"""Configurations: `base.py` names every field, the other files are starting points."""
