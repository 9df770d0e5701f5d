"""Parse settings, ``field=value``, by the types of the recipe's fields."""

import types
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cyclofocal.lab.data.config import DEFAULTS, FIELD_TYPES, BoxData, data_config
from cyclofocal.lab.longtail import FOLLOWERS, OLTR, ShotGroups
from cyclofocal.lab.messages import did_you_mean
from cyclofocal.lab.recipes.recipe import NOT_STORED_IF_OFF, Recipe
from cyclofocal.lab.schema import WORDS

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)

BOOLEANS = {"true": True, "false": False}
SHOT_GROUPS = {"oltr": OLTR, "followers": FOLLOWERS}


class SettingError(ValueError):
    """Unknown field, value of another type, or value that the recipe refuses."""


def with_settings(recipe: AnyRecipe, settings: Iterable[str]) -> AnyRecipe:
    """Replace fields of a recipe; a list is separated by commas, "none" is None.

    Raises:
        SettingError: names the setting and the allowed values.

    Example:
        >>> recipe = Recipe("r", "a title", data_config("digits"), epochs=4, learning_rate=1.0)
        >>> with_settings(recipe, ["epochs=2", "temperature_range=0.5,2"]).temperature_range
        (0.5, 2.0)
    """
    hints = _flat_hints(recipe)
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise SettingError(f"{setting!r} is not a setting; it must be field=value, like epochs=10")
        if name not in hints:
            hint = did_you_mean(name, hints)
            raise SettingError(f"{name!r} is not a field of a recipe; allowed: {', '.join(hints)}.{hint}")
        try:
            values[name] = _value(text.strip(), hints[name])
        except (ValueError, KeyError):
            raise SettingError(f"{name} is {text!r}; it must be {_described(hints[name])}") from None
    of_data = {name: values.pop(name) for name in ("source", *FIELD_TYPES) if name in values}
    try:
        return replace(recipe, data=data_config(**(recipe.data.flat() | of_data)), **values)
    except ValueError as error:
        raise SettingError(str(error)) from None


def settings_of(recipe: Recipe) -> list[str]:
    """Fields of a recipe and of its data as :func:`with_settings` takes them; shot groups that it does not, by name.

    Example:
        >>> recipe = Recipe("r", "a title", data_config("digits"), epochs=4, learning_rate=1.0, clip_norm_range=(1, 2))
        >>> [setting for setting in settings_of(recipe) if setting.startswith(("epochs", "clip"))]
        ['epochs=4', 'clip_norm=none', 'clip_norm_range=1,2']
    """
    stored = DEFAULTS | recipe.flat()
    return [f"{name}={_text(getattr(recipe, name, stored.get(name)))}" for name in _flat_hints(recipe)]


def _text(value: Any) -> str:
    """Inverse of :func:`_value`."""
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    if isinstance(value, ShotGroups):
        return next((name for name, groups in SHOT_GROUPS.items() if groups == value), value.name)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _flat_hints(recipe: Recipe) -> dict[str, Any]:
    """Types of the fields of a recipe and of its data, in the order of records."""
    hints = {"source": str, **FIELD_TYPES, **get_type_hints(type(recipe))}
    further = ("bad_boxes",) if isinstance(recipe.data, BoxData) else ()
    return {name: hints[name] for name in dict.fromkeys((*recipe.flat(), *NOT_STORED_IF_OFF, *further))}


def _value(text: str, hint: Any) -> Any:
    """Parse ``text`` as a value of the type; ValueError or KeyError if that fails."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if text.lower() == "none" else _value(text, next(a for a in arguments if a is not type(None)))
    if origin is Literal:
        return arguments[arguments.index(text)]
    if origin is tuple:
        parts = [_value(part.strip(), arguments[0]) for part in text.split(",") if part.strip()]
        if arguments[-1] is not Ellipsis and len(parts) != len(arguments):
            raise ValueError(text)
        return tuple(parts)
    if hint is bool:
        return BOOLEANS[text.lower()]
    if hint is ShotGroups:
        return SHOT_GROUPS[text.lower()]
    return hint(text)


def _described(hint: Any) -> str:
    """Describe a type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return f"{_described(next(a for a in arguments if a is not type(None)))}, or none"
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin is tuple:
        many = "numbers" if arguments[-1] is Ellipsis else f"{len(arguments)} numbers"
        return f"{many}, separated by commas"
    return WORDS.get(hint, f"one of {', '.join(SHOT_GROUPS)}")
