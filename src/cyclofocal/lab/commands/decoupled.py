"""``cyclofocal decoupled``: other classifiers on the features of a run that has ended."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cyclofocal.lab.commands.arguments import Root, one_of
from cyclofocal.lab.commands.evaluate import PIPED_COLUMNS, definition, in_unit
from cyclofocal.lab.commands.telling import told_in_a_line
from cyclofocal.lab.oltr.evaluation import Evaluation, shown

if TYPE_CHECKING:
    from torch import Tensor

    from cyclofocal.lab.oltr.decoupled import Fit
    from cyclofocal.lab.oltr.features import Features

METHODS = {
    "plain": "the run's own",
    "crt": "cRT",
    "tau": "tau-norm",
    "lws": "LWS",
    "adjusted": "logit adjustment",
    "balanced-softmax": "balanced softmax",
    "class-balanced": "class-balanced weights",
    "effective-number": "effective-number weights",
}
"""What is shown: the run's own classifier, and those of :mod:`~cyclofocal.lab.oltr.decoupled` in its place."""

SHOWN = {
    **{"many": "many, %", "medium": "medium, %", "few": "few, %", "accuracy": "all, %"},
    **{"nll": "NLL", "ece": "ECE, %", "f_oltr": "F (oltr), %", "auroc": "AUROC, %"},
}
"""Metrics by their key, with the heading of their column."""


def method_names(names: str) -> str:
    """Refuse what is no list of methods."""
    return ",".join(one_of(name.strip(), list(METHODS), "method") for name in names.split(","))


def decoupled(
    folder: Annotated[Path, typer.Argument(help="A finished run of train or reproduce: OUT/RECIPE/LOSS-seedK-HASH.")],
    method: Annotated[str, typer.Option(help=f"From {', '.join(METHODS)}.", callback=method_names)] = ",".join(METHODS),
    tau: Annotated[
        float | None, typer.Option(min=0.0, help="Of tau-normalisation; default: best on validation images, else 1.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of what is trained.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1)] = 512,
    learning_rate: Annotated[float, typer.Option(help="Of the first epoch; it falls by a cosine.")] = 0.2,
    root: Root = Path("data"),
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images from disk.")] = 0,
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU.")] = False,
) -> None:
    """Fit other classifiers to a run's features, and show many-, medium- and few-shot accuracy of each.

    The logits of each are kept beside the run, in decoupled/METHOD.npz, for `cyclofocal evaluate`.
    """
    with told_in_a_line(folder):
        from cyclofocal.lab.oltr.decoupled import Fit
        from cyclofocal.lab.oltr.evaluation import evaluate
        from cyclofocal.lab.oltr.features import features_of
        from cyclofocal.lab.oltr.predictions import write
        from cyclofocal.lab.train import Setup

        fit = Fit(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
        features = features_of(folder, Setup(root, None, workers, cpu))
        evaluations = []
        for name in method.split(","):
            logits, title = _logits(name, features, fit, tau)
            predictions = features.predictions(logits, title)
            write(predictions, folder / "decoupled" / f"{name}.npz")
            evaluations.append(evaluate(predictions, features.recipe.threshold, features.recipe.groups))
    _show(f"{features.recipe.title}, {features.title}, seed {features.seed}", evaluations)


def _logits(name: str, features: "Features", fit: "Fit", tau: float | None) -> "tuple[Tensor, str]":
    """Logits of the test images by one method, and what it is called."""
    import torch
    from torch.nn import CrossEntropyLoss

    from cyclofocal.lab.longtail import balanced_weights, effective_number_weights
    from cyclofocal.lab.oltr import decoupled as classifiers

    counts, test = features.counts, features.test[0]
    if name == "plain":
        return features.classifier(test), METHODS[name]
    if name == "adjusted":
        return classifiers.adjusted(features.classifier(test), counts), METHODS[name]
    if name == "tau":
        chosen = _best_tau(features) if tau is None else tau
        return classifiers.tau_normalised(features.classifier, chosen)(test), f"{METHODS[name]}, tau {chosen:g}"
    if name == "lws":
        return classifiers.rescaled(features.classifier, *features.train, features.seed, fit=fit)(test), METHODS[name]
    if name == "crt":
        return classifiers.retrained(*features.train, len(counts), features.seed, fit=fit)(test), METHODS[name]
    criteria: dict[str, Callable[[], torch.nn.Module]] = {
        "balanced-softmax": lambda: classifiers.LogitAdjusted(CrossEntropyLoss(), counts),
        "class-balanced": lambda: CrossEntropyLoss(torch.from_numpy(balanced_weights(counts)).float()),
        "effective-number": lambda: CrossEntropyLoss(torch.from_numpy(effective_number_weights(counts)).float()),
    }
    plain = replace(fit, sampling="plain")
    found = classifiers.retrained(*features.train, len(counts), features.seed, criteria[name](), plain)
    return found(test), METHODS[name]


def _best_tau(features: "Features") -> float:
    """The tau of 0, 0.1, ..., 2 with the highest mean accuracy of the classes on validation images; 1 without them."""
    from cyclofocal.lab.metrics import recall_per_class
    from cyclofocal.lab.oltr.decoupled import tau_normalised

    if features.validation is None:
        return 1.0
    images, labels = features.validation

    def accuracy(tau: float) -> float:
        predicted = tau_normalised(features.classifier, tau)(images).argmax(1)
        return float(recall_per_class(predicted.numpy(), labels.numpy(), len(features.counts)).mean())

    return max((step / 10 for step in range(21)), key=accuracy)


def _show(title: str, evaluations: Sequence[Evaluation]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_COLUMNS
    metrics = {metric.key: metric for metric in shown() if metric.key in evaluations[0].numbers}
    view = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title)
    view.title_style, view.title_justify = "bold", "left"
    view.add_column("classifier", no_wrap=True)
    chosen = [key for key in SHOWN if key in metrics]
    for key in chosen:
        view.add_column(SHOWN[key], justify="right", no_wrap=True)
    for evaluation in evaluations:
        view.add_row(evaluation.title, *(in_unit(evaluation.numbers[key], metrics[key]) for key in chosen))
    console.print(view)
    console.print(definition(evaluations[0]), style="dim", markup=False)
