"""Parse losses given as text: names, names with settings, and custom losses."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cyclofocal.lab.messages import did_you_mean
from cyclofocal.lab.recipes.custom_loss import check_loss, file_digest, only_loss
from cyclofocal.lab.recipes.loss import (
    DETECTION_LOSSES,
    LIGHTGBM,
    LOGISTIC_REGRESSION,
    LOSSES,
    MAJORITY,
    LossSettings,
)
from cyclofocal.lab.recipes.settings import SettingError
from cyclofocal.ranges import check_at_least

GAMMAS = ("gamma_pos", "gamma_neg")
PRIOR = ("tau", "smoothing_odds", "class_weight", "weight_start", "sampler")
SETTINGS: dict[str, tuple[str, ...]] = {
    "ce": PRIOR,
    "smoothed": ("label_smoothing", *PRIOR),
    "focal": (*GAMMAS, "label_smoothing", *PRIOR),
    "asymmetric": (*GAMMAS, "label_smoothing", *PRIOR),
    "cyclical": (*GAMMAS, "gamma_hc", "cyclical_factor", "label_smoothing", *PRIOR),
    "weighted": ("label_smoothing", *PRIOR),
    "logit-adjusted": ("label_smoothing", *PRIOR),
    "balanced-softmax": ("label_smoothing", *PRIOR),
    "class-balanced-focal": (*GAMMAS, "label_smoothing", *PRIOR),
    "ldam-drw": ("max_margin", "label_smoothing", *PRIOR),
    "vs": ("vs_gamma", "label_smoothing", *PRIOR),
}
"""Settings of each loss, in the order of its full name; ``learning_rate_scale`` is one of every loss."""

BASE_ESTIMATORS = {loss.name: loss for loss in (MAJORITY, LOGISTIC_REGRESSION, LIGHTGBM)}
"""Models that are fitted in place of a network; the latter two have the setting ``class_weight``."""

DENSE = ("alpha", "label_smoothing", "class_weight", "weight_start")
DETECTION_SETTINGS: dict[str, tuple[str, ...]] = {
    "bce": DENSE,
    "focal": (*GAMMAS, *DENSE),
    "asymmetric": (*GAMMAS, *DENSE),
    "cyclical": (*GAMMAS, "gamma_hc", "cyclical_factor", *DENSE),
    "class-balanced-focal": (*GAMMAS, *DENSE),
}
"""Settings of each detection loss, as :data:`SETTINGS`."""

SAMPLERS = ("balanced",)

TAKEN_NAMES = SETTINGS.keys() | DETECTION_SETTINGS.keys() | BASE_ESTIMATORS.keys()
"""Names that a custom loss cannot have."""

SCALE_SETTING = "learning_rate_scale"

CUSTOM = re.compile(r"(?:(?P<name>[^=:]+)=)?(?P<path>[^=]+\.py)(?::(?P<function>\w+))?")
"""NAME=PATH.py:FUNCTION, where the name and, in a file with one loss, the function may be left out."""


CUSTOM_SETTINGS = ("sampler", SCALE_SETTING)
"""Settings of a custom loss of classifiers; batches of images with boxes cannot be balanced."""


class LossFamily(NamedTuple):
    """Losses of one kind of model.

    Attributes:
        losses: by name, with those of references.
        settings: of each loss.
        references: names of models that are fitted in place of a network.
        build: makes the loss of its settings and the samples per class; checks the settings.
    """

    losses: dict[str, LossSettings]
    settings: dict[str, tuple[str, ...]]
    references: tuple[str, ...]
    build: Callable[[LossSettings, Sequence[int]], Any]


def loss_family(boxes: bool) -> LossFamily:
    """Losses of detectors, or of classifiers with their references."""
    from cyclofocal.lab.recipes.criterion import build_box_criterion, build_criterion

    if boxes:
        return LossFamily({loss.name: loss for loss in DETECTION_LOSSES}, DETECTION_SETTINGS, (), build_box_criterion)
    known = {loss.name: loss for loss in LOSSES} | BASE_ESTIMATORS
    return LossFamily(known, SETTINGS, tuple(BASE_ESTIMATORS), build_criterion)


def losses_in(text: str, boxes: bool = False) -> list[LossSettings]:
    """Parse losses separated by commas, each with its settings after a colon, which commas separate too.

    A custom loss is ``PATH.py:FUNCTION``, or ``NAME=PATH.py:FUNCTION``; see
    :func:`~cyclofocal.lab.recipes.custom_loss.load_loss`. Its file is run; the loss is called once the number of
    classes is known, see :func:`~cyclofocal.lab.training.train.try_custom_losses`.

    Args:
        text: losses.
        boxes: True for losses of detectors, whose settings differ, instead of classifiers.

    Raises:
        SettingError: an unknown loss or setting, a value of another type or out of its range, a loss given twice, or
            a custom loss that cannot be imported. The message suggests a correction.

    Example:
        >>> [loss.name for loss in losses_in("ce,cyclical:gamma_hc=2,cyclical_factor=4,focal")]
        ['ce', 'cyclical:gamma_hc=2,cyclical_factor=4', 'focal']
    """
    family = loss_family(boxes)
    of_custom = (SCALE_SETTING,) if boxes else CUSTOM_SETTINGS
    losses = [
        custom_loss(item, settings, of_custom) or _built_in(item, settings, family) for item, settings in _items(text)
    ]
    _check_different(losses)
    return losses


def spelled_loss(loss: LossSettings, boxes: bool = False) -> str:
    """Text from which :func:`losses_in` makes a loss of the same settings, without its trials of tuning.

    Args:
        loss: its settings.
        boxes: True for a loss of detectors.

    Returns:
        "" for a built-in loss of another version, which is unknown here.

    Example:
        >>> from cyclofocal.lab.recipes.loss import CYCLICAL
        >>> spelled_loss(replace(CYCLICAL, name="cyclical:tuned", gamma_hc=2.1, trials=8))
        'cyclical:gamma_hc=2.1'
    """
    base = re.split("[:@]", loss.name)[0]
    if loss.file:
        scale = "" if loss.learning_rate_scale == 1 else f",{SCALE_SETTING}={_short(loss.learning_rate_scale)}"
        return f"{base}={loss.file}{scale}"
    family = loss_family(boxes)
    if base not in family.settings:
        return ""
    default, allowed = family.losses[base], (*family.settings[base], SCALE_SETTING)
    return base + _settings_text({n: getattr(loss, n) for n in allowed if getattr(loss, n) != getattr(default, n)})


def _settings_text(values: Mapping[str, float | str]) -> str:
    """Settings after the name of a loss, with the colon; "" without any."""
    spelled = ",".join(f"{setting}={_short(value)}" for setting, value in values.items())
    return f":{spelled}" if spelled else ""


def _items(text: str) -> list[tuple[str, list[str]]]:
    """Group losses and settings; an item with an equals sign that is no file belongs to the loss before it."""
    items: list[tuple[str, list[str]]] = []
    for part in (part.strip() for part in text.split(",")):
        is_setting = "=" in part and ":" not in part.split("=")[0] and not CUSTOM.fullmatch(part)
        if is_setting and items:
            items[-1][1].append(part)
        elif CUSTOM.fullmatch(part):
            items.append((part, []))
        else:
            name, colon, setting = part.partition(":")
            items.append((name.strip(), [setting] if colon else []))
    return items


def _built_in(name: str, settings: list[str], family: LossFamily) -> LossSettings:
    if name not in family.losses:
        others = f", the references {', '.join(family.references)}" if family.references else ""
        raise SettingError(
            f"{name!r} is not a loss{'' if family.references else ' of detectors'}; allowed:"
            f" {', '.join(family.settings)}{others}, or a custom loss, PATH.py:FUNCTION."
            f"{did_you_mean(name, list(family.losses))}"
        )
    loss = family.losses[name]
    if not settings:
        return loss
    if loss == MAJORITY:
        raise SettingError(f"{name} has no settings; {settings[0]!r} was given")
    allowed = ("class_weight",) if loss.estimator else (*family.settings[name], SCALE_SETTING)
    values = _values(name, settings, allowed, family)
    described = ", ".join(f"{setting} {_short(value)}" for setting, value in values.items())
    if values.get("smoothing_odds"):
        if values.get("label_smoothing"):
            raise SettingError(f"label_smoothing of {name} is given, and smoothing_odds sets it; leave one out")
        loss = replace(loss, label_smoothing=0.0)
    changed = replace(loss, name=f"{name}{_settings_text(values)}", title=f"{loss.title} ({described})", **values)
    _check_range(changed, family)
    return changed


def custom_loss(
    item: str, settings: Sequence[str] = (), allowed: tuple[str, ...] = CUSTOM_SETTINGS
) -> LossSettings | None:
    """A user-defined loss, ``NAME=PATH.py:FUNCTION``; None where ``item`` is not one.

    Args:
        item: path and function.
        settings: texts ``SETTING=VALUE``.
        allowed: names of settings.

    The name may be left out, and the function too where the file has one loss only.

    Raises:
        SettingError: as :func:`losses_in`.
    """
    found = CUSTOM.fullmatch(item)
    if found is None:
        return None
    path = found["path"]
    try:
        function = found["function"] or only_loss(Path(path))
    except (FileNotFoundError, ValueError) as error:
        raise SettingError(str(error)) from None
    name, taken_names = (found["name"] or function).strip(), TAKEN_NAMES
    if not re.fullmatch(r"[\w.-]+", name) or name in taken_names:
        taken = (
            "is the name of a built-in loss"
            if name in taken_names
            else "is not letters, digits, '_', '-' and '.' alone"
        )
        raise SettingError(f"{name!r} {taken}; rename your loss: NAME={path}:{function}")
    file = f"{path}:{function}"
    try:
        digest = file_digest(Path(path))
        check_loss(file, digest)
    except (FileNotFoundError, ValueError) as error:
        raise SettingError(str(error)) from None
    values = _values(name, settings, allowed)
    described = "".join(f", {setting} {_short(value)}" for setting, value in values.items())
    title = f"{name} ({file}{described})"
    return LossSettings(name + _settings_text(values), title, file=file, digest=digest, **values)


def _values(
    loss: str, settings: Sequence[str], allowed: tuple[str, ...], family: LossFamily | None = None
) -> dict[str, Any]:
    """Parse settings as numbers, in the order of ``allowed``, so that one loss has one name."""
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise SettingError(f"{loss}:{setting}: it must be {loss}:SETTING=NUMBER, like {loss}:{allowed[0]}=1")
        if name not in allowed:
            raise SettingError(
                f"{name!r} is not a setting of {loss}; allowed: {', '.join(allowed)}.{_other(name, family)}"
                f"{did_you_mean(name, list(allowed))}"
            )
        if name in values:
            raise SettingError(f"{name} of {loss} is given twice; give it once")
        values[name] = _value(loss, name, text)
    if not values.get(SCALE_SETTING, 1.0) > 0 or values.get(SCALE_SETTING) == float("inf"):
        raise SettingError(
            f"{SCALE_SETTING} of {loss} is {values[SCALE_SETTING]}; it must be greater than 0, and finite"
        )
    return {name: values[name] for name in allowed if name in values}


def _value(loss: str, name: str, text: str) -> float | str:
    """Parse the value of a setting: a number, or the name of a weighting scheme."""
    from cyclofocal.imbalance import SCHEMES

    if name in ("class_weight", "sampler"):
        schemes = SAMPLERS if name == "sampler" else ("balanced",) if loss in BASE_ESTIMATORS else SCHEMES
        if text != "none" and text not in schemes:
            allowed = [*schemes, "none"]
            hint = did_you_mean(text, allowed)
            raise SettingError(f"{name} of {loss} is {text!r}; it must be one of {', '.join(allowed)}.{hint}")
        return "" if text == "none" else text
    try:
        return float(text)
    except ValueError:
        raise SettingError(f"{name} of {loss} is {text!r}; it must be a number") from None


def _check_range(loss: LossSettings, family: LossFamily) -> None:
    """Check settings by the loss of the library."""
    from cyclofocal.arguments import check_gammas, check_unit_interval

    if loss.estimator:
        return
    try:
        check_gammas(**{name: getattr(loss, name) for name in (*GAMMAS, "gamma_hc")})
        check_unit_interval("label_smoothing", loss.label_smoothing)
        check_at_least("vs_gamma", loss.vs_gamma, 0)
        check_at_least("max_margin", loss.max_margin, 0)
        family.build(loss, (1, 1))
    except ValueError as error:
        raise SettingError(f"{loss.name}: {error}") from None


def _check_different(losses: list[LossSettings]) -> None:
    for place, loss in enumerate(losses):
        for earlier in losses[:place]:
            if earlier.name == loss.name:
                raise SettingError(
                    f"{loss.name!r} is given twice; give each loss once, a custom one as NAME=PATH.py:FUNCTION"
                )
            if replace(earlier, name="", title="") == replace(loss, name="", title=""):
                raise SettingError(f"{loss.name!r} and {earlier.name!r} are the same loss; give one of them")


def _other(setting: str, family: LossFamily | None) -> str:
    having = [name for name, settings in family.settings.items() if setting in settings] if family else []
    return f" {setting} is a setting of {', '.join(having)}." if having else ""


def _short(value: float | str) -> str:
    """Format a number as the shortest text that reads as it; a name as it is."""
    if isinstance(value, str):
        return value or "none"
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)
