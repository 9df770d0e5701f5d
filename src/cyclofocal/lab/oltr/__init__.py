"""Open long-tailed recognition: attention, memory, meta-embedding, and what classifiers are compared with."""
