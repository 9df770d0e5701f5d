"""Data sets of an experiment: published ones by name, the user's own by path, all as :class:`Images`."""

from cyclofocal.lab.data.errors import DamagedDataError, MissingDataError, MissingImageError, UnreadableImageError
from cyclofocal.lab.data.images import DataSet, Images
from cyclofocal.lab.data.sources import load

__all__ = [
    "DamagedDataError",
    "DataSet",
    "Images",
    "MissingDataError",
    "MissingImageError",
    "UnreadableImageError",
    "load",
]
