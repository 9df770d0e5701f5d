"""Train a model: data to batches, batches to epochs, checkpoints, and the record of a run."""
