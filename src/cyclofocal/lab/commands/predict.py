"""``cyclofocal predict`` and ``cyclofocal export``: finished models on new data, and in other programs."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cyclofocal.lab.commands.options import Cpu, DataWorkers, Images, make_folder
from cyclofocal.lab.commands.output import one_line_errors, warn
from cyclofocal.lab.messages import preview

if TYPE_CHECKING:
    from cyclofocal.lab.predict.detector import DetectionSummary, TrainedDetector
    from cyclofocal.lab.predict.model import TrainedModel
    from cyclofocal.lab.predict.stream import PredictionSummary

FinishedRun = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="Folder of a finished run of train or reproduce: OUT/RECIPE/LOSS-seedK-HASH."),
]


class FormatName(StrEnum):
    """Formats of an exported model."""

    pt2 = "pt2"
    onnx = "onnx"


def output_path(path: Path | None) -> Path | None:
    """Refuse an output file in an unsupported format."""
    if path is not None and path.suffix.lower() not in (".csv", ".json"):
        raise typer.BadParameter(f"{str(path)!r} must end in .csv, of a detector in .json.")
    return path


def predict_new(
    run: FinishedRun,
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA",
            help="New data: a table (.csv, .parquet) for a model of a table; image files, folders of images or list"
            " files for a model of images; for a detector also a COCO file (.json), whose boxes are then evaluated.",
        ),
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write; default: predictions.csv, or of a detector detections.json.",
            callback=output_path,
            dir_okay=False,
        ),
    ] = None,
    images: Images = None,
    pictures: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for the images with the boxes of a detector.")
    ] = None,
    score: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Score from which --pictures show a box; default: 0.3.")
    ] = None,
    top: Annotated[
        bool, typer.Option("--top", help="Write the probability of the predicted class alone, not of every class.")
    ] = False,
    calibrated: Annotated[
        bool,
        typer.Option("--calibrated", help="Divide the logits by the temperature that was fitted to validation data."),
    ] = False,
    balanced: Annotated[
        bool,
        typer.Option(
            "--balanced", help="Take the class prior of the training data out, as for data with equally many of each."
        ),
    ] = False,
    tuned_threshold: Annotated[
        bool,
        typer.Option(
            "--tuned-threshold",
            help="Predict the rarer of two classes from the threshold of best F1 on validation data.",
        ),
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Predict the rarer of two classes from this probability."),
    ] = None,
    id_column: Annotated[
        str, typer.Option("--id", metavar="COLUMN", help="Column of the table to copy into the output.")
    ] = "",
    data_workers: DataWorkers = 0,
    cpu: Cpu = False,
) -> None:
    """Predict new images or rows with the model of a finished run, and write a CSV file; of a detector, COCO results.

    Tables are read in parts, so they may exceed the memory. Columns that are missing, values of another kind than in
    training and classes that the model does not know are refused by name; then nothing is written.
    """
    if runs := [path for path in data if any((path / name).is_file() for name in ("run.json", "lock", "record.jsonl"))]:
        raise typer.BadParameter(
            f"{runs[0]} is the folder of another run; give one RUN, and then the data to predict.", param_hint="DATA"
        )
    if tuned_threshold and threshold is not None:
        raise typer.BadParameter("give one of them.", param_hint="--tuned-threshold, --threshold")
    with one_line_errors(run):
        from cyclofocal.lab.predict.load import load_any
        from cyclofocal.lab.predict.model import TrainedModel
        from cyclofocal.lab.predict.stream import Output, predict_file

        model = load_any(run, _device(cpu))
    output = _checked_output(output, isinstance(model, TrainedModel))
    replaced = _replaced(output)
    if not isinstance(model, TrainedModel):
        options = {"--top": top, "--calibrated": calibrated, "--balanced": balanced, "--id": id_column}
        options |= {"--tuned-threshold": tuned_threshold, "--threshold": threshold is not None}
        _refuse([option for option, value in options.items() if value], "a classifier, and this is a detector")
        with one_line_errors(run):
            boxes = _detect(model, data, output, pictures, score, data_workers, images)
        _print_boxes(boxes, f"{output}{replaced}", pictures)
        return
    options = {"--pictures": pictures is not None, "--score": score is not None, "--images": images is not None}
    _refuse([option for option, value in options.items() if value], "a detector, and this is a classifier")
    with one_line_errors(run):
        contents = Output(calibrated, balanced, "stored" if tuned_threshold else threshold, top, id_column)
        found = predict_file(model, data, output, contents, data_workers)
    if found.unused:
        warn(f"columns not used, for the model was trained without them: {preview(found.unused)}")
    for name, texts in found.unknown.items():
        warn(f"column {name!r}: not seen in training, so encoded as none of its categories: {preview(sorted(texts))}")
    for name, count in found.missing.items():
        warn(
            f"column {name!r}: missing in {count} of {found.samples} rows, and never in training: a number is taken as"
            " the median of training, a text as none of the categories"
        )
    typer.echo(f"{found.samples} predictions: {output}{replaced}")
    if found.labelled.any():
        typer.echo(_quality(found, model))


def _checked_output(output: Path | None, classifies: bool) -> Path:
    """Path of the output, whose folder is made."""
    path = output or Path("predictions.csv" if classifies else "detections.json")
    suffix = ".csv" if classifies else ".json"
    if path.suffix.lower() != suffix:
        raise typer.BadParameter(f"{str(path)!r} must end in {suffix}.", param_hint="--output")
    make_folder(path.parent, "--output")
    return path


def _refuse(options: list[str], of: str) -> None:
    if options:
        raise typer.BadParameter(f"only for {of}; omit it.", param_hint=", ".join(options))


def _detect(
    model: "TrainedDetector",
    data: list[Path],
    output: Path,
    pictures: Path | None,
    score: float | None,
    workers: int,
    images: Path | None,
) -> "DetectionSummary":
    from cyclofocal.lab.predict.detector import LEAST_SCORE, detect_files

    least = LEAST_SCORE if score is None else score
    return detect_files(model, data, output, pictures, least, workers, images)


def _print_boxes(found: "DetectionSummary", output: str, pictures: Path | None) -> None:
    """Print the number of boxes, and the average precision where the true ones are known."""
    from cyclofocal.lab.metrics import BOX_METRICS

    typer.echo(f"{found.boxes} boxes in {found.images} images: {output}")
    if pictures is not None:
        typer.echo(f"pictures {pictures}")
    known = [(metric.short_title, found.metrics.get(metric.key)) for metric in BOX_METRICS]
    if shown := [f"{title} {100 * value:.2f} %" for title, value in known if value is not None]:
        typer.echo(", ".join(shown))


def _quality(found: "PredictionSummary", model: "TrainedModel") -> str:
    """Metrics of the predictions whose class is known, in one line."""
    there = found.labelled > 0
    recall = (found.right[there] / found.labelled[there]).mean()
    accuracy = found.right.sum() / found.labelled.sum()
    overall = f"balanced accuracy {recall:.2%}, accuracy {accuracy:.2%} of {found.labelled.sum()} labelled"
    if len(model.classes) != 2:
        return overall
    c = model.description.positive
    of_class, predicted = (f"{found.right[c] / max(n[c], 1):.2%}" for n in (found.labelled, found.predicted))
    start = 0.5 if found.threshold is None else found.threshold
    return (
        f"{model.classes[c]!r}, predicted from a probability of {start:.3g}: recall {of_class}, precision {predicted};"
        f" {overall}"
    )


def export_run(
    run: FinishedRun,
    *,
    kind: Annotated[FormatName, typer.Option("--format", help="Format: torch.export's pt2, or ONNX.")] = FormatName.pt2,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: model.pt2 or model.onnx.")
    ] = None,
) -> None:
    """Export the network of a finished run, compare its logits with those of the model, and report the difference."""
    path = output or Path(f"model.{kind}")
    make_folder(path.parent, "--output")
    replaced = _replaced(path)
    with one_line_errors(run):
        from cyclofocal.lab.predict.export import export_model
        from cyclofocal.lab.predict.load import load_model

        difference = export_model(load_model(run), path, kind.value)
    typer.echo(f"{path}{replaced}: largest difference to the logits of the model {difference:.2g}")


def _replaced(path: Path) -> str:
    """Say behind the name of an output that there is one already."""
    return " (replaced)" if path.exists() else ""


def _device(cpu: bool) -> str:
    import torch

    return "cuda" if torch.cuda.is_available() and not cpu else "cpu"
