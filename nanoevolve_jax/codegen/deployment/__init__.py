"""Candidates trained as jobs of a Ray cluster: what is sent, where to, and what comes back."""
