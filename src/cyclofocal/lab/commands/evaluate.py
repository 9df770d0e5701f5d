"""``cyclofocal evaluate``: metrics and figures from stored logits, without a new run."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cyclofocal.lab.commands.options import refused
from cyclofocal.lab.commands.output import PIPED_COLUMNS, table_console
from cyclofocal.lab.longtail import ShotGroups
from cyclofocal.lab.metrics import Metric, metrics_of
from cyclofocal.lab.oltr.evaluation import OPEN_METRICS, Evaluation, evaluate_file
from cyclofocal.lab.oltr.open_set_metrics import THRESHOLD
from cyclofocal.lab.recipes.settings import SHOT_GROUPS
from cyclofocal.lab.report.table import Column, ReportTable, TableCell, to_terminal
from cyclofocal.lab.report.wording import format_value
from cyclofocal.lab.training.predictions import Predictions, read


def shot_groups(text: str) -> ShotGroups:
    """Shot groups ``oltr`` or ``followers``, or custom bounds such as ``100,20``: many from 100, few up to 20 images.

    Raises:
        ValueError: an unknown name or malformed bounds.

    Example:
        >>> print(shot_groups("50,10"))
        custom bounds: many >= 50, few <= 10 training images per class
    """
    if text in SHOT_GROUPS:
        return SHOT_GROUPS[text]
    try:
        many_from, few_up_to = map(int, text.split(","))
    except ValueError:
        raise ValueError(
            f"{text!r} is unknown; it must be one of {', '.join(SHOT_GROUPS)}, or two numbers such as 100,20"
        ) from None
    return ShotGroups("custom bounds", many_from, few_up_to)


def evaluate(
    logits: Annotated[
        list[Path], typer.Argument(metavar="LOGITS", help="NumPy files (.npz) with logits, target and train_counts.")
    ],
    threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Confidence below which an image is rejected as unknown.")
    ] = THRESHOLD,
    groups: Annotated[
        str,
        typer.Option(
            metavar="BOUNDS",
            help="Many- and few-shot bounds: oltr (>= 100, <= 20), followers (> 100, < 20), or numbers like 100,20.",
        ),
    ] = "oltr",
    per_class: Annotated[bool, typer.Option("--per-class", help="Show the accuracy of every class as well.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON line per file, with fractions in place of percentages.")
    ] = False,
    pictures: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder to write classes.png to and, for open sets, confidence.png."),
    ] = None,
) -> None:
    """Evaluate stored logits, closed and open set; several files, such as the losses of a data set, side by side."""
    with refused("--groups"):
        convention = shot_groups(groups)
    with refused("LOGITS", FileNotFoundError):
        evaluations = [evaluate_file(path, threshold, convention) for path in logits]
        _check_together(evaluations)
    if as_json:
        for evaluation in evaluations:
            typer.echo(json.dumps(asdict(evaluation), allow_nan=False))
    else:
        _show(evaluations, per_class)
    if pictures is not None:
        _draw([read(path) for path in logits], evaluations, pictures)


def _show(evaluations: Sequence[Evaluation], per_class: bool) -> None:
    console = table_console(max(PIPED_COLUMNS, 34 + 24 * len(evaluations)))
    console.print(to_terminal(evaluation_table(evaluations)))
    for line in dict.fromkeys(definition(evaluation) for evaluation in evaluations):
        console.print(line, style="dim", markup=False)
    if per_class:
        console.print(to_terminal(recall_table(evaluations)))


def evaluation_table(evaluations: Sequence[Evaluation]) -> ReportTable:
    """Metrics as rows, files as columns."""
    rows = [
        [TableCell(metric.heading), *(TableCell(format_metric(e.numbers.get(metric.key), metric)) for e in evaluations)]
        for metric in (*metrics_of(evaluations[0].rarer), *OPEN_METRICS)
        if any(evaluation.numbers.get(metric.key) is not None for evaluation in evaluations)
    ]
    return ReportTable("", [Column("metric", "text"), *(Column(evaluation.title) for evaluation in evaluations)], rows)


def recall_table(evaluations: Sequence[Evaluation]) -> ReportTable:
    """Classes as rows, their training images and their accuracy by file."""
    columns = [Column("class", "text"), Column("training images"), *(Column(f"{e.title}, %") for e in evaluations)]
    rows = [
        [TableCell(str(c)), TableCell(str(count)), *(TableCell(f"{100 * e.recall[c]:.1f}") for e in evaluations)]
        for c, count in enumerate(evaluations[0].train_counts)
    ]
    return ReportTable("", columns, rows)


def format_metric(value: float | None, metric: Metric) -> str:
    """Metric in its unit; "-" for None."""
    return "-" if value is None else format_value(100 * value if metric.percent else value, metric)


def definition(evaluation: Evaluation) -> str:
    """Definition of the numbers on one line."""
    line = f"{evaluation.groups}; {evaluation.n_images} images of known classes"
    if evaluation.rarer:
        line = f"{evaluation.n_images} samples of known classes; tuned: at the threshold chosen on validation data"
    if evaluation.threshold is None:
        return line
    return f"{line}, {evaluation.n_unknown} of unknown ones; rejected below a confidence of {evaluation.threshold:g}"


def _check_together(evaluations: Sequence[Evaluation]) -> None:
    """Refuse files of different training sets."""
    for evaluation in evaluations[1:]:
        if evaluation.train_counts != evaluations[0].train_counts:
            raise ValueError(
                f"{evaluation.title} and {evaluations[0].title} have different training images per class; evaluate"
                " them one by one"
            )


def _draw(predictions: Sequence[Predictions], evaluations: Sequence[Evaluation], folder: Path) -> None:
    from cyclofocal.lab.oltr.figures import draw_classes, draw_confidence

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{folder} cannot be made: {error.strerror}.", param_hint="--pictures") from None
    draw_classes(evaluations, folder / "classes.png")
    typer.echo(f"picture  {folder / 'classes.png'}")
    if all(evaluation.n_unknown for evaluation in evaluations):
        draw_confidence(predictions, folder / "confidence.png", evaluations[0].threshold)
        typer.echo(f"picture  {folder / 'confidence.png'}")
