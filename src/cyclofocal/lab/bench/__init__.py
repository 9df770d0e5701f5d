"""The benchmark: what is measured, how, and the tables and the picture made of it."""
