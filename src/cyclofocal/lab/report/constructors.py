"""Write the settings of losses as constructor calls, and as options of the command line, to paste."""

import shlex
from collections.abc import Mapping
from typing import Any

from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.recipes.parse_losses import spelled_loss
from cyclofocal.lab.records import RunRecord
from cyclofocal.lab.report.experiment import LOSS_DEFAULTS, fold_of
from cyclofocal.lab.report.summary import Summary

MOST_LISTED = 12
"""Most runs that a call names."""


def constructor_call(loss: LossSettings, boxes: bool = False) -> str:
    """Python expression that makes the loss; ``counts`` in it are the training samples per class.

    Args:
        loss: its settings.
        boxes: True for a loss of detectors, whose heads divide the sum over the anchors.

    Returns:
        "" for a custom loss, and for a margin or vector scaling, which the library has no class for.

    Example:
        >>> constructor_call(LossSettings("focal", "focal", gamma_pos=2.0, gamma_neg=1.5))
        'FocalLoss(gamma_pos=2.0, gamma_neg=1.5)'
    """
    if loss.file or loss.max_margin or loss.vs_gamma:
        return ""
    smoothing = {"label_smoothing": loss.label_smoothing} if loss.label_smoothing else {}
    if boxes:
        return _sigmoid_call(loss, smoothing)
    if loss.is_cross_entropy:
        return _call("torch.nn.CrossEntropyLoss", smoothing)
    gammas = {"gamma_pos": loss.gamma_pos, "gamma_neg": loss.gamma_neg}
    kind = "FocalLoss"
    if loss.cyclical_factor is not None:
        kind = "CyclicalFocalLoss"
        gammas |= {"gamma_hc": loss.gamma_hc, "cyclical_factor": loss.cyclical_factor}
    if not loss.needs_counts:
        return _call(kind, gammas | smoothing)
    of_counts = {
        name: getattr(loss, name)
        for name in ("class_weight", "tau", "smoothing_odds", "weight_start")
        if getattr(loss, name)
    }
    return _call(f"{kind}.from_counts", of_counts | gammas | smoothing, "counts")


def _sigmoid_call(loss: LossSettings, smoothing: dict[str, float]) -> str:
    """Python expression of a loss over a sigmoid, for ``swap_loss``; "" with class weights, which are of tensors."""
    if loss.class_weight:
        return ""
    settings: dict[str, Any] = {"gamma_pos": loss.gamma_pos, "gamma_neg": loss.gamma_neg}
    kind = "BinaryFocalLoss"
    if loss.cyclical_factor is not None:
        kind = "BinaryCyclicalFocalLoss"
        settings |= {"gamma_hc": loss.gamma_hc, "cyclical_factor": loss.cyclical_factor}
    alpha = {} if loss.alpha is None else {"alpha": loss.alpha}
    return _call(kind, settings | alpha | smoothing | {"reduction": "sum"})


def _call(name: str, settings: Mapping[str, Any], *positional: str) -> str:
    return f"{name}({', '.join([*positional, *(f'{key}={value!r}' for key, value in settings.items())])})"


def loss_of(run: RunRecord) -> LossSettings:
    """Settings of the loss of a run, old records included."""
    return LossSettings(**(LOSS_DEFAULTS | run.loss))


def chosen_settings(summary: Summary, name: str) -> list[str]:
    """Settings of a tuned loss, each with the seeds (``seed.fold`` with folds) it was chosen for.

    The settings of most runs come first: a constructor call, if there is one, and the ``--loss`` for ``cyclofocal
    train`` as a comment. Empty for a loss that was not tuned.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    for run in summary.experiment.runs[name]:
        loss = loss_of(run)
        if loss.trials:
            rate = f"learning rate x {loss.learning_rate_scale:g}, " if loss.learning_rate_scale != 1 else ""
            cell = f"{run.seed}.{fold_of(run)}" if summary.folds > 1 else f"{run.seed}"
            found.setdefault((constructor_call(loss), rate, spelled_loss(loss)), []).append(cell)
    return [
        f"{f'{call}  ' if call else ''}# {rate}{_seeds(cells)}{f': --loss {shlex.quote(text)}' if text else ''}"
        for (call, rate, text), cells in sorted(found.items(), key=lambda item: -len(item[1]))
    ]


def tuned_calls(summary: Summary) -> list[str]:
    """Lines of Python with the settings of every tuned loss, each loss under its title; empty without tuning."""
    found = {name: chosen_settings(summary, name) for name in summary.experiment.runs}
    titles = summary.experiment.titles
    return [line for name, calls in found.items() if calls for line in (f"# {titles[name]}", *calls)]


def _seeds(cells: list[str]) -> str:
    more = f" and {len(cells) - MOST_LISTED} more" if len(cells) > MOST_LISTED else ""
    return f"seed{'s' if len(cells) > 1 else ''} {', '.join(cells[:MOST_LISTED])}{more}"
