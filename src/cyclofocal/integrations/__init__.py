"""At home where people train: one file per host. Importing this package imports no host."""
