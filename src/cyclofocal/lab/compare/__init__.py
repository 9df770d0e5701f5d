"""A grid of experiments, losses and seeds: independent jobs, on this machine or on a cluster."""
