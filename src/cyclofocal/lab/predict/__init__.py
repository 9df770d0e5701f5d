"""Finished models on new data: load, predict, export."""
