"""Data sets of an experiment: published ones by name, custom ones by path, all as :class:`Samples`."""

from cyclofocal.lab.data.dataset import DataSet, Samples
from cyclofocal.lab.data.load import load
from cyclofocal.lab.messages import DamagedDataError, MissingDataError, MissingImageError, UnreadableImageError

__all__ = [
    "DamagedDataError",
    "DataSet",
    "MissingDataError",
    "MissingImageError",
    "Samples",
    "UnreadableImageError",
    "load",
]
