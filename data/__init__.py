"""Text for a model: corpora, tokenizer, packed rows, batches as a function of (seed, step)."""
