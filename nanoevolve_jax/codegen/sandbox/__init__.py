"""The sandbox of the operating system, and certificates of what passed in it."""
