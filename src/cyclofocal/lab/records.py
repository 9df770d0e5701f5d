"""Run records: one JSON line per run, from which every table and figure is made."""

import gzip
import json
import math
import os
import platform
import re
import secrets
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from cyclofocal.lab.metrics import BINS, EVERY_METRIC, PRIMARY
from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.recipes.recipe import Recipe, flat_schema
from cyclofocal.lab.schema import fault, needed, short


@dataclass(frozen=True)
class RunRecord:
    """Record of one run. Equal seeds give equal records on one CPU, except for the seconds.

    Attributes:
        recipe: fields of the recipe; of a reference too, though it uses the data alone.
        loss: fields of the loss settings.
        seed: seed of the split, the long tail, the initialisation and the data order.
        versions: versions of Python and of the packages that determine the results.
        device: "cpu", or the accelerator's name.
        train_counts: training samples per class; of detections, boxes.
        epochs: one row per epoch: epoch (from 0), eta, learning_rate, train_loss, train_accuracy; weight_decay,
            temperature, clip_norm where they cycle; validation_accuracy, validation_balanced_accuracy,
            validation_nll where there is such a split, of two classes validation_auroc; validation_loss with early
            stopping, which makes fewer rows than the recipe has epochs. Empty for a reference.
        metrics: metrics of the test set with the evaluated weights, as fractions (nats for nll); see ``metrics``.
        per_class: accuracy of each class on the test set, of detections its average precision, as fractions; empty in
            old records.
        reliability: per bin of confidence: samples of the test set, sum of their confidences, correct ones; empty in
            old records.
        seconds: wall time of the run, summed over all parts if it was stopped and resumed; the first run of a worker
            process includes its imports.
        data: the data set's title.
        weights: evaluated weights, "last epoch", "moving average", "best epoch" or "best epoch of the moving average";
            the best epoch is that of :func:`best_epoch`. "" for a reference.
        epoch_seconds: training time of each epoch, without evaluation.
        data_seconds: part of it in which the training waited for its batches; empty in old records.
        processes, threads: processes, and CPU threads per process, of the last part of the run.
        command: command that started the run; empty if it was started from Python.
        classes: names of the classes, in label order; empty in old records, as are the next three fields.
        validation_samples: number of validation samples, of detections boxes; 0 without a validation set.
        test_counts: test samples per class; of detections, boxes.
        system: operating system and processor.
        primary_metric: key of the metric chosen for the verdicts when the run was started; "" if none was.
        columns: of a table, a description of how each column is encoded, as "date, as 4 numbers"; empty for images.
        tau: strength of the adjustment of ``adjusted``, chosen on validation data, 1 without; None in old records, as
            is the next field.
        temperature: divisor of the logits fitted to validation data; None without.
        threshold: probability of the rarer of two classes with the best F1 on validation data; None without.
        thresholds: probabilities of the rarer of two classes that are best on validation data, by measure of
            :data:`~cyclofocal.lab.metrics.THRESHOLDS`; empty without, and in old records.
        adjusted: metrics of the same logits less tau times the logarithm of the class prior; empty in old records.
        confusion: test samples by true class (rows) and predicted class; empty in old records and above
            :data:`CONFUSION_CLASSES` classes.
        margin: differences in the primary metric below it count as none, declared when the run was started, in per cent
            for percentages; None if none was.
        precision_recall: of detections, precision at recall 0, 0.01, ..., 1 and an overlap of 0.5, mean over the
            classes; empty otherwise.
    """

    recipe: dict[str, Any]
    loss: dict[str, Any]
    seed: int
    versions: dict[str, str]
    device: str
    train_counts: list[int]
    epochs: list[dict[str, float | None]]
    metrics: dict[str, float | None]
    seconds: float
    data: str = ""
    weights: str = "last epoch"
    epoch_seconds: list[float] = field(default_factory=list)
    processes: int = 1
    threads: int = 1
    command: str = ""
    per_class: list[float] = field(default_factory=list)
    reliability: list[list[float]] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    validation_samples: int = 0
    test_counts: list[int] = field(default_factory=list)
    system: str = ""
    primary_metric: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    tau: float | None = None
    temperature: float | None = None
    threshold: float | None = None
    thresholds: dict[str, float] = field(default_factory=dict)
    adjusted: dict[str, float | None] = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)
    margin: float | None = None
    precision_recall: list[float] = field(default_factory=list)
    data_seconds: list[float] = field(default_factory=list)

    @property
    def is_reference(self) -> bool:
        """True for a model fitted in place of a network; see :data:`~cyclofocal.lab.recipes.loss.ESTIMATORS`."""
        return bool(self.loss.get("estimator"))

    @property
    def is_detection(self) -> bool:
        """True for a detector, whose metrics are of boxes."""
        return self.recipe.get("task") == "detection"


VALIDATION_LOSS = "validation_loss"
"""Key of the rows of epochs by which early stopping goes."""


def best_epoch(rows: Sequence[Mapping[str, Any]]) -> int:
    """Epoch whose weights are evaluated: the first of the smallest validation loss, or the last without early stopping.

    Example:
        >>> best_epoch([{VALIDATION_LOSS: 0.7}, {VALIDATION_LOSS: 0.4}, {VALIDATION_LOSS: 0.4}]), best_epoch([{}, {}])
        (1, 1)
    """
    if any(row.get(VALIDATION_LOSS) is None for row in rows):
        return len(rows) - 1
    return min(range(len(rows)), key=lambda epoch: rows[epoch][VALIDATION_LOSS], default=-1)


def has_stopped(rows: Sequence[Mapping[str, Any]], patience: int) -> bool:
    """True if the validation loss has not become smaller for ``patience`` epochs, of which 0 is for ever."""
    return 0 < patience <= len(rows) - 1 - best_epoch(rows)


RECALLS = 101
"""Recalls at which ``precision_recall`` has a precision."""

CONFUSION_CLASSES = 100
"""Most classes of a stored confusion matrix, which then takes about 30 kB of a record."""

NAMES, NEEDED = {entry.name for entry in fields(RunRecord)}, needed(RunRecord)
REPEATED = {"recipe", "loss", "versions", "command", "system", "classes", "columns", "train_counts", "test_counts"}
"""Fields that are equal in many records of a file."""

FRACTIONS = {metric.key for metric in EVERY_METRIC if metric.percent}

LARGEST = 1e100
"""Largest value of a metric, whose square must be finite too."""


class DamagedRecordError(ValueError):
    """Line that is not a record of a run, or file without records.

    Attributes:
        file: path of the file.
        fault: problem, in words.
        line: number of the line, from 1; 0 for a whole file.
    """

    def __init__(self, file: Path, fault: str, line: int = 0) -> None:
        super().__init__(file, fault, line)
        self.file, self.fault, self.line = file, fault, line

    def __str__(self) -> str:
        return f"{self.file}{f', line {self.line}' if self.line else ''}: {self.fault}"


def versions(estimator: str = "") -> dict[str, str]:
    """Versions of Python and of the packages that determine the results of a run, or of a reference."""
    packages = ["cyclofocal", "torch", "numpy", "scikit-learn", "timm", "torchvision"]
    packages += ["lightgbm"] if estimator == "lightgbm" else []
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def system() -> str:
    """Operating system and processor, as "Linux x86_64, AMD EPYC 9B14"."""
    return f"{platform.system()} {platform.machine()}, {processor()}"


def processor() -> str:
    """Name of the CPU."""
    try:
        with open("/proc/cpuinfo") as info:
            names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def write_record(record: RunRecord, path: Path) -> None:
    """Write one line atomically: after a kill at any moment ``path`` holds all of it, or its previous content."""
    line = json.dumps(asdict(record), allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, line.encode())


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Write atomically: after a kill at any moment ``path`` holds all the parts, or its previous content."""
    with atomic_file(path) as file:
        for part in parts:
            file.write(part)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` at the end of the block; an error or a kill leaves ``path`` as it was."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def not_a_file(path: Path) -> str:
    """Description of what ``path`` is instead of a file; "" for a file or a free path."""
    if path.is_file() or not os.path.lexists(path):
        return ""
    return "a folder" if path.is_dir() else "a link that leads nowhere" if path.is_symlink() else "no regular file"


def read_records(path: Path) -> Iterator[RunRecord | DamagedRecordError]:
    """Read every line of a file, or of all ``*.jsonl`` files of a folder, as a record or an error.

    A record has every field in the type that :class:`RunRecord` and its recipe and loss say, and numbers and lengths
    that one run can have. A file whose name ends in ``.gz`` is unpacked on the way.

    Raises:
        FileNotFoundError: no such file or folder.
    """
    if not os.path.lexists(path):
        raise FileNotFoundError(f"{path} does not exist; it must be a .jsonl file or a folder of them")
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        yield from read_file(file)


def read_file(file: Path) -> Iterator[RunRecord | DamagedRecordError]:
    """:func:`read_records` of one file."""
    if found := not_a_file(file):
        yield DamagedRecordError(file, f"{found}, where a file of records must be")
        return
    known: dict[tuple[str, bytes], Any] = {}
    number = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):  # one in memory at a time
                try:
                    yield _parse(line, known)
                except ValueError as error:
                    yield DamagedRecordError(file, str(error), number)
    except (OSError, EOFError, zlib.error) as error:
        yield DamagedRecordError(file, f"cannot be read ({getattr(error, 'strerror', None) or error})")
        return
    if not number:
        yield DamagedRecordError(file, "empty")


def _parse(line: bytes, known: dict[tuple[str, bytes], Any]) -> RunRecord:
    """Parse and check a line.

    Args:
        line: JSON.
        known: fields of earlier lines by name and JSON: an equal one is not checked again, and shares their memory.
    """
    try:
        content = orjson.loads(line)
    except orjson.JSONDecodeError:
        content = _decoded(line)
    given = content.keys() if isinstance(content, dict) else set()
    if not NEEDED <= given <= NAMES:
        raise ValueError(f"not a run record: missing {sorted(NEEDED - given)}, unknown {sorted(given - NAMES)}")
    if said := fault(content, RunRecord):
        raise ValueError(said)
    schemas: dict[str, Any] = {"recipe": flat_schema(Recipe), "loss": LossSettings}
    for name in REPEATED & given:
        key = name, orjson.dumps(content[name])
        if key not in known and name in schemas and (said := fault(content[name], schemas[name], name)):
            raise ValueError(said)
        content[name] = known.setdefault(key, content[name])
    content.setdefault("primary_metric", _named_metric(content))
    record = RunRecord(**content)
    if said := _wrong_length(record) or _out_of_range(record):
        raise ValueError(said)
    return record


def _decoded(line: bytes) -> Any:
    """Parse with json, which orjson beats fourfold but which reads NaN and names the column of damage."""
    try:
        content = json.loads(line.decode())
        orjson.dumps(content)  # refuses half a character and a whole number of more than 64 bits
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON (column {error.colno}: {error.msg}); it may have been cut off") from None
    except (RecursionError, TypeError) as error:
        raise ValueError(f"not a run record ({error})") from None
    for name, value in content.items() if isinstance(content, dict) else ():
        if name not in ("metrics", "adjusted") and not _is_finite(value):
            raise ValueError(f"{name} is {short(value)}; its numbers must be finite")
    return content


def _is_finite(content: Any) -> bool:
    try:
        json.dumps(content, allow_nan=False)
    except ValueError:
        return False
    return True


def _wrong_length(record: RunRecord) -> str:
    """Problem with the length of a list, in words; "" if all are right."""
    for name in ("train_counts", "epochs"):
        if not getattr(record, name) and not (name == "epochs" and record.is_reference):
            return f"{name} is []; it must not be empty"
    classes, of_classes = len(record.train_counts), "as train_counts has"
    for name, length, why in (
        ("classes", classes, of_classes),
        ("per_class", classes, of_classes),
        ("test_counts", classes, of_classes),
        ("epoch_seconds", len(record.epochs), "as epochs has"),
        ("data_seconds", len(record.epochs), "as epochs has"),
        ("reliability", BINS, "one of each bin of confidence"),
        ("confusion", classes, of_classes),
        ("precision_recall", RECALLS, "one of each recall"),
    ):
        if (found := len(getattr(record, name))) not in (0, length):
            return f"{name} has {found} entries; it must have {length}, {why}"
    for place, row in enumerate(record.reliability):
        if len(row) != 3:
            return f"reliability[{place}] is {short(row)}; it must be three numbers"
    for place, counts in enumerate(record.confusion):
        if len(counts) != classes:
            return f"confusion[{place}] has {len(counts)} entries; it must have {classes}, {of_classes}"
    return ""


def _out_of_range(record: RunRecord) -> str:
    """Problem with the range of a number, in words; "" if all are right."""
    if record.per_class and not record.metrics:
        return "metrics is {}; the test set was touched, for per_class is there"
    if said := _wrong_metric(record.metrics, "metrics") or _wrong_metric(record.adjusted, "adjusted"):
        return said
    for name in ("tau", "temperature", "threshold", "margin"):
        if (number := getattr(record, name)) is not None and number < 0:
            return f"{name} is {number:g}; it must not be negative"
    for name, number in record.thresholds.items():
        if not 0 <= number <= 1:
            return f"thresholds.{name} is {number:g}; it must be a probability, in [0, 1]"
    for name in ("per_class", "precision_recall"):
        if (shares := getattr(record, name)) and not 0 <= min(shares) <= max(shares) <= 1:
            return f"{name} is {short(shares)}; it must be fractions, in [0, 1]"
    for name in ("train_counts", "test_counts", "epoch_seconds", "data_seconds"):
        if min(getattr(record, name), default=0) < 0:
            return f"{name} is {short(getattr(record, name))}; it must not be negative"
    for name in ("reliability", "confusion"):
        if min(chain.from_iterable(getattr(record, name)), default=0) < 0:
            return f"{name} holds a negative number; it must not: it counts samples"
    return ""


def _wrong_metric(metrics: dict[str, float | None], name: str) -> str:
    """Problem with a metric, in words; "" if all are right."""
    for key, number in metrics.items():
        if number is None:
            continue
        if key in FRACTIONS and (number < 0 or number > 1):
            return f"{name}.{key} is {number:g}; it must be a fraction, in [0, 1]"
        if LARGEST < abs(number) < math.inf:
            return f"{name}.{key} is {number:g}; it must be at most {LARGEST:g}"
    return ""


def _named_metric(content: dict[str, Any]) -> str:
    """Primary metric of a record without this field: the one that its command names, or the default of commands."""
    if not (command := content.get("command")):
        return ""
    named = re.search(r"--metric[ =](\w+)", command)
    return named[1] if named else PRIMARY
