"""Campaigns of code mutation: questions to providers, outcomes, and the loop that runs them."""
