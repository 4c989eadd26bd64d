"""The search: candidates, selection, the archive, promotion and confirmation."""
