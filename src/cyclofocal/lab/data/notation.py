"""Numbers as people write them: with a decimal comma, grouped thousands, a unit, or a dash for a missing one."""

import re
from collections.abc import Collection
from typing import NamedTuple

ABSENT = ("-", "--", "\N{EN DASH}", "\N{EM DASH}", ".")
"""Missing values among numbers."""

UNITS = "$€£¥%‰"
SIGNS = "-+\N{MINUS SIGN}"
SPACERS = " \N{NO-BREAK SPACE}\N{THIN SPACE}\N{NARROW NO-BREAK SPACE}'\N{RIGHT SINGLE QUOTATION MARK}"
"""Separators of groups of three digits in both notations, in addition to the mark that is not the decimal one."""

INTEGER = re.compile("-?[0-9]+")
PARTS = re.compile(rf"([{SIGNS}]?)\s*([{UNITS}]?)\s*([{SIGNS}]?)\s*([0-9.,].*?)\s*([{UNITS}]?)")


def _digits(group: str, decimal: str) -> re.Pattern[str]:
    grouped = rf"[1-9][0-9]{{0,2}}([{group}{SPACERS}])[0-9]{{3}}(?:\1[0-9]{{3}})*"
    return re.compile(rf"(?:(?:{grouped}|[0-9]+)(?:[{decimal}][0-9]+)?|[{decimal}][0-9]+)(?:[eE][+-]?[0-9]+)?")


NUMBER_PATTERNS = {".": _digits(",", "."), ",": _digits(".", ",")}
"""Patterns of numbers by decimal mark."""


class Notation(NamedTuple):
    """Numbers that texts mean.

    Attributes:
        numbers: number of every text; NaN for those in :data:`ABSENT`.
        decimal: decimal mark, "." or ",".
    """

    numbers: dict[str, float]
    decimal: str


class _Number(NamedTuple):
    unit: str
    values: dict[str, float]  # by decimal mark


def read_numbers(texts: Collection[str], point_is_decimal: bool) -> Notation | None:
    """Read numbers in the one notation that fits all texts, without their unit, so that "5 %" is 5.

    Args:
        texts: distinct texts, without white space around them.
        point_is_decimal: choose the decimal point if both notations fit.

    Returns:
        The notation; None if a text is no number, there is no text, or all are digits alone, which may be codes.

    Raises:
        ValueError: each text is a number, but no single notation and unit fits all, or two do and differ.

    Example:
        >>> read_numbers(["0,5", "1.250,75", "-"], point_is_decimal=False)
        Notation(numbers={'0,5': 0.5, '1.250,75': 1250.75, '-': nan}, decimal=',')
    """
    found: dict[str, _Number] = {}
    for text in texts:
        if text not in ABSENT:
            if (number := _number(text)) is None:
                return None
            found[text] = number
    if not found or (len(found) == len(texts) and all(map(INTEGER.fullmatch, texts))):
        return None
    fitting = [mark for mark in NUMBER_PATTERNS if all(mark in number.values for number in found.values())]
    if len({number.unit for number in found.values()}) > 1 or not fitting:
        raise ValueError(_mixed(found))
    if len(fitting) == 2 and not point_is_decimal:
        _check_same(found)
    numbers = {text: number.values[fitting[0]] for text, number in found.items()}
    return Notation(numbers | {text: float("nan") for text in texts if text in ABSENT}, fitting[0])


def number_of(text: str, decimal: str) -> float | None:
    """Read a number in the notation with this decimal mark; NaN for a missing one, None for other texts.

    Example:
        >>> number_of("1.250,5 %", ",")
        1250.5
    """
    if text in ABSENT:
        return float("nan")
    found = _number(text)
    return None if found is None else found.values.get(decimal)


def has_decimal_point(texts: Collection[str]) -> bool:
    """True if the point of a text can only be the decimal one, as in "1.5"."""
    return any("." in text and (number := _number(text)) is not None and "," not in number.values for text in texts)


def _number(text: str) -> _Number | None:
    """Values that a text may have."""
    parts = PARTS.fullmatch(text)
    if parts is None or (parts[1] and parts[3]) or (parts[2] and parts[5]):
        return None
    sign = -1.0 if (parts[1] or parts[3]) not in ("", "+") else 1.0
    values = {
        mark: sign * _value(parts[4], mark) for mark, digits in NUMBER_PATTERNS.items() if digits.fullmatch(parts[4])
    }
    return _Number(parts[2] + parts[5], values) if values else None


def _value(digits: str, mark: str) -> float:
    group = "," if mark == "." else "."
    return float(re.sub(f"[{group}{SPACERS}]", "", digits).replace(mark, "."))


def _check_same(found: dict[str, _Number]) -> None:
    for text, number in found.items():
        if len(set(number.values.values())) > 1:
            with_point, with_comma = number.values["."], number.values[","]
            raise ValueError(
                f"holds numbers that can be read in two ways, such as {text!r}, {with_point:g} or {with_comma:g}; write"
                " them with a decimal point and without a mark for thousands, in a file separated by commas"
            )


def _mixed(found: dict[str, _Number]) -> str:
    first, unit = next((text, number.unit) for text, number in found.items())
    pair = [first, *(text for text, number in found.items() if number.unit != unit)][:2]
    if len(pair) == 1:
        pair = [next(text for text, number in found.items() if mark not in number.values) for mark in ",."]
    return (
        f"holds numbers in more than one notation or unit, such as {pair[0]!r} and {pair[1]!r}; write all with a"
        " decimal point and without a unit"
    )
