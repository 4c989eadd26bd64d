"""Code generation by providers: profiles, calls and their costs, prompts, and edits."""
