"""The search: mutation, selection, promotion and the archive."""
