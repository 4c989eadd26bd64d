"""A campaign of code: who is asked for what, what became of it, and the loop around that."""
