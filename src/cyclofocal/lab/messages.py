"""Errors of data on disk, and parts of messages."""

import difflib
from collections.abc import Collection, Iterable

PREVIEW_LENGTH = 5

LISTED_IMAGES = 100
"""Largest number of unreadable images that are named at once, so that they can be mended together."""


class MissingDataError(FileNotFoundError):
    """Missing data set, list or package; the message says where it was searched for and how to get it."""


class DamagedDataError(ValueError):
    """Damaged file: cut off, of another format, or with impossible labels."""


class UnreadableImageError(DamagedDataError):
    """Image that cannot be decoded; the message begins with its path."""


class MissingImageError(UnreadableImageError):
    """Listed image that does not exist; the message begins with its path."""


def did_you_mean(given: str, allowed: Iterable[str], most: int = 1) -> str:
    """Suggest the nearest allowed names, as " Did you mean 'ce'?"; "" if none is near."""
    nearest = difflib.get_close_matches(given, list(allowed), n=most, cutoff=0.4)
    return f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""


def counted(count: int, one: str, many: str) -> str:
    """Number with the noun that goes with it, and perhaps its verb.

    Example:
        >>> counted(1, "image is", "images are")
        '1 image is'
    """
    return f"{count} {one if count == 1 else many}"


def preview(names: Collection[object], most: int = PREVIEW_LENGTH) -> str:
    """List the first few names and the number of others: "a, b, c, d, e and 7 more"."""
    shown = ", ".join(str(name) for name, _ in zip(names, range(most), strict=False))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
