"""Sandbox of the operating system, and certificates of the code that was validated in it."""
