"""Who writes code: providers, the calls to them and what those cost, prompts, edits."""
