"""Experiments: one file per data set, each a function that returns a frozen, typed :class:`Recipe`."""
