"""What to try next: mutation, selection, the archive."""
