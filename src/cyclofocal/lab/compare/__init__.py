"""A grid of experiments, losses and seeds: every cell an independent run, on this machine or on a cluster."""
