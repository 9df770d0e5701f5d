"""``cyclofocal decoupled``: other classifiers on the features of a finished run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cyclofocal.lab.commands.evaluate import definition, format_metric
from cyclofocal.lab.commands.options import Cpu, DataWorkers, Root, check_choice
from cyclofocal.lab.commands.output import one_line_errors, table_console
from cyclofocal.lab.oltr.evaluation import ALL_METRICS, Evaluation
from cyclofocal.lab.oltr.methods import METHODS
from cyclofocal.lab.report.table import Column, ReportTable, TableCell, to_terminal

SHOWN = {
    **{"many": "many, %", "medium": "medium, %", "few": "few, %", "accuracy": "all, %"},
    **{"nll": "NLL", "ece": "ECE, %", "f_oltr": "F (oltr), %", "auroc": "AUROC, %"},
}
"""Metrics by their key, with the heading of their column."""


def method_names(names: str) -> str:
    """Refuse names that are not methods."""
    return ",".join(check_choice(name.strip(), list(METHODS), "method") for name in names.split(","))


def decoupled(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Folder of a finished run of train or reproduce: OUT/RECIPE/LOSS-seedK-HASH."
        ),
    ],
    *,
    method: Annotated[
        str,
        typer.Option(
            metavar="METHOD,...",
            help=f"Methods, separated by commas: {', '.join(METHODS)}.",
            callback=method_names,
        ),
    ] = ",".join(METHODS),
    tau: Annotated[
        float | None,
        typer.Option(min=0.0, help="Exponent of tau-normalisation; default: the best on validation images, or else 1."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Number of training epochs.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of samples per batch.")] = 512,
    learning_rate: Annotated[float, typer.Option(help="Initial learning rate, with cosine decay.")] = 0.2,
    root: Root = Path("data"),
    data_workers: DataWorkers = 0,
    cpu: Cpu = False,
) -> None:
    """Fit other classifiers to the features of a run, and show the many-, medium- and few-shot accuracy of each.

    The logits are stored in the folder of the run, as decoupled/METHOD.npz, for `cyclofocal evaluate`.
    """
    with one_line_errors(folder):
        from cyclofocal.lab.oltr.decoupled import FitConfig
        from cyclofocal.lab.oltr.evaluation import evaluate_logits
        from cyclofocal.lab.oltr.features import features_of
        from cyclofocal.lab.oltr.methods import logits_of
        from cyclofocal.lab.training.job import RunOptions
        from cyclofocal.lab.training.predictions import write

        fit = FitConfig(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
        features = features_of(folder, RunOptions(root, data_workers, cpu))
        evaluations = []
        for name in method.split(","):
            logits, title = logits_of(name, features, fit, tau)
            predictions = features.predictions(logits, title)
            write(predictions, folder / "decoupled" / f"{name}.npz")
            evaluations.append(evaluate_logits(predictions, features.recipe.threshold, features.recipe.groups))
    _show(f"{features.recipe.title}, {features.title}, seed {features.seed}", evaluations)


def _show(title: str, evaluations: Sequence[Evaluation]) -> None:
    console = table_console()
    metrics = {metric.key: metric for metric in ALL_METRICS if metric.key in evaluations[0].numbers}
    chosen = [key for key in SHOWN if key in metrics]
    columns = [Column("classifier", "text"), *(Column(SHOWN[key]) for key in chosen)]
    rows = [
        [TableCell(e.title), *(TableCell(format_metric(e.numbers[key], metrics[key])) for key in chosen)]
        for e in evaluations
    ]
    console.print(to_terminal(ReportTable(title, columns, rows), tight=True))
    console.print(definition(evaluations[0]), style="dim", markup=False)
