"""Data sets of an experiment: published ones by name, custom ones by path, all as ``dataset.Samples``."""
