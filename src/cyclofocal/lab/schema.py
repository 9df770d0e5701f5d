"""Check what JSON holds by the types of a dataclass."""

import json
import types
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, lru_cache
from itertools import chain
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
"""Types in words."""

LONGEST = 40
"""Letters of a value in a message."""

Fits = Callable[[Iterable[Any]], bool]

_KINDS: dict[Any, frozenset[type]] = {kind: frozenset({kind}) for kind in (int, bool, str, types.NoneType)}
_KINDS[float] = frozenset({int, float})


def fault(content: Any, kind: type, name: str = "") -> str:
    """The first thing that keeps ``content`` from being a ``kind``, in words; "" if nothing does.

    Lists stand for tuples and dictionaries for dataclasses. A key that ``kind`` does not have may be of another
    version, and passes.

    Args:
        content: what JSON gave.
        kind: a dataclass.
        name: of the content in the message.

    Example:
        >>> from cyclofocal.lab.longtail import ShotGroups
        >>> fault({"name": "own", "many_from": "100", "few_up_to": 20}, ShotGroups, "groups")
        'groups.many_from is "100"; it must be a whole number'
    """
    if type(content) is not dict:
        return f"{name} is {short(content)}; it must be a dictionary"
    missing, doubtful = _outline(kind, tuple(content), tuple(map(type, content.values())))
    if missing:
        return f"{name} is {short(content)}; it must have {', '.join(missing)}"
    for key, hint, fits in doubtful:
        if not fits((content[key],)):
            return _innermost(content[key], hint, f"{name}.{key}" if name else key)
    return ""


@cache
def needed(kind: type) -> frozenset[str]:
    """Fields of a dataclass that have no default."""
    return frozenset(entry.name for entry in fields(kind) if entry.default is entry.default_factory is MISSING)


def short(content: Any) -> str:
    """A value in a message."""
    text = json.dumps(content)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


@lru_cache(maxsize=1000)
def _outline(
    kind: type, names: tuple[str, ...], found: tuple[type, ...]
) -> tuple[list[str], list[tuple[str, Any, Fits]]]:
    """Fields that are missing, and those whose type alone does not say that they fit, by names and types.

    Most dictionaries have names and types in common, and plain values need no other look.
    """
    hints = get_type_hints(kind)
    doubtful = [
        name for name, one in zip(names, found, strict=True) if name in hints and one not in _plain(hints[name])
    ]
    return sorted(needed(kind).difference(names)), [(name, hints[name], _fits(hints[name])) for name in doubtful]


def _plain(hint: Any) -> frozenset[type]:
    """Types whose every value fits."""
    if get_origin(hint) is Literal:
        return frozenset(map(type, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return frozenset().union(*map(_plain, get_args(hint)))
    return _KINDS.get(hint, frozenset())


@cache
def _fits(hint: Any) -> Fits:
    """A test of many values at once, which is much faster than one by one."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        return _all_of(list, list.__iter__, _fits(arguments[0]))
    if origin is dict:
        return _all_of(dict, dict.values, _fits(arguments[1]))
    if origin is tuple:
        item, length = _fits(arguments[0]), len(arguments)
        return lambda values: all(type(value) is list and len(value) == length and item(value) for value in values)
    if origin in (Union, types.UnionType) and not all(map(_plain, arguments)):
        parts = [_fits(part) for part in arguments]
        return lambda values: all(any(part((value,)) for part in parts) for value in values)
    if is_dataclass(hint):
        return lambda values: not any(_not_made(value, hint, "") for value in values)
    kinds = _plain(hint)
    return lambda values: hint is Any or kinds.issuperset(map(type, values))


def _all_of(kind: type, parts: Callable[[Any], Iterable[Any]], fits: Fits) -> Fits:
    """A test of lists or dictionaries, and of what is in them."""
    kinds = frozenset({kind})

    def test(values: Iterable[Any]) -> bool:
        values = [*values]
        return kinds.issuperset(map(type, values)) and fits(chain.from_iterable(map(parts, values)))

    return test


def _innermost(value: Any, hint: Any, name: str) -> str:
    """Describe the innermost part of a value that does not fit."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (list, tuple) and type(value) is list and (origin is list or arguments[-1] is Ellipsis):
        parts, inner = [(f"{name}[{place}]", item) for place, item in enumerate(value)], arguments[0]
    elif origin is dict and type(value) is dict:
        parts, inner = [(f"{name}.{json.dumps(key)[1:-1]}", item) for key, item in value.items()], arguments[1]
    elif is_dataclass(hint):
        return _not_made(value, hint, name)
    else:
        return f"{name} is {short(value)}; it must be {_described(hint)}"
    return next(_innermost(item, inner, part) for part, item in parts if not _fits(inner)((item,)))


def _not_made(content: Any, kind: Any, name: str) -> str:
    """Why a dataclass cannot be made of a dictionary: types, or its own rules."""
    if said := fault(content, kind, name):
        return said
    try:
        kind(**content)
    except (TypeError, ValueError) as error:
        return f"{name} is {short(content)}: {error}"
    return ""


def _described(hint: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_described, arguments))
    if origin in (list, tuple):
        return f"a list of {len(arguments)}" if origin is tuple and arguments[-1] is not Ellipsis else "a list"
    names = {**WORDS, types.NoneType: "null"}
    return "a dictionary" if origin is dict else names.get(hint, names[str])
