"""Output on a terminal: help, progress and pages."""
