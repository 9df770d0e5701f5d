"""What can be wrong with data on disk; every message names the file and says what would be right."""

import difflib
from collections.abc import Collection, Iterable

PREVIEW_LENGTH = 5


class MissingDataError(FileNotFoundError):
    """A data set, list or image that is not there; the message says where it was looked for and how to get it."""


class DamagedDataError(ValueError):
    """A file that is there but wrong: cut off, of another format, or with labels that cannot be."""


class UnreadableImageError(DamagedDataError):
    """An image that cannot be decoded; the message begins with its path."""


class MissingImageError(UnreadableImageError):
    """An image that is listed and not there; the message begins with its path."""


def did_you_mean(given: str, allowed: Iterable[str], most: int = 1) -> str:
    """What to end a message with: the nearest of what is allowed, as " Did you mean 'ce'?"; "" where none is near."""
    nearest = difflib.get_close_matches(given, list(allowed), n=most, cutoff=0.4)
    return f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""


def preview(names: Collection[object]) -> str:
    """The first few of many things and how many there are more: "a, b, c, d, e and 7 more"."""
    shown = ", ".join(str(name) for name, _ in zip(names, range(PREVIEW_LENGTH), strict=False))
    return shown if len(names) <= PREVIEW_LENGTH else f"{shown} and {len(names) - PREVIEW_LENGTH} more"
