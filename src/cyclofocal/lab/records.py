"""One run, one line: the record that every table and picture is made of."""

import gzip
import hashlib
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson


@dataclass(frozen=True)
class RunRecord:
    """All that is known of one run. Equal seeds give equal records on one CPU, but for the seconds.

    Attributes:
        recipe: the recipe's fields.
        loss: the loss settings' fields.
        seed: of the split, the long tail, the initialisation and the data order.
        versions: of Python and of the packages that decide the numbers.
        device: "cpu", or the accelerator's name.
        train_counts: training images per class.
        epochs: one row per epoch: epoch (from 0), eta, learning_rate, train_loss, train_accuracy; weight_decay,
            temperature, clip_norm where they cycle; validation_accuracy, validation_balanced_accuracy,
            validation_nll where there is such a split.
        metrics: of the test set, after the last epoch, as fractions (nats for nll); see ``metrics``.
        per_class: accuracy of each class on the test set, as fractions; empty in records of before it was kept.
        reliability: per bin of confidence: samples of the test set, sum of their confidences, right ones; likewise.
        seconds: wall time of the run, over all its parts if it was stopped and continued; the first of a worker
            process has its imports in it.
        data: the data set's title.
        weights: which were evaluated, "last epoch" or "moving average".
        epoch_seconds: training time of each epoch, without evaluation.
        processes, threads: of the run's last part; threads per process, of the CPU.
        command: that made it; empty where it was not a command.
        classes: their names, in label order; empty in records of before they were kept, as are the next three.
        validation_samples: how many there were; 0 where none were asked for.
        test_counts: test images per class.
        system: operating system and processor.
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


NAMES = {entry.name for entry in fields(RunRecord)}
NEEDED = {entry.name for entry in fields(RunRecord) if entry.default is entry.default_factory is MISSING}


class DamagedRecordError(ValueError):
    """A line that is not a record; the message says where and why."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers of a run."""
    packages = ("cyclofocal", "torch", "numpy", "scikit-learn", "timm", "torchvision")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def system() -> str:
    """Operating system and processor, as "Linux x86_64, AMD EPYC 9B14"."""
    return f"{platform.system()} {platform.machine()}, {processor()}"


def processor() -> str:
    """The CPU's name."""
    try:
        with open("/proc/cpuinfo") as info:
            names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def content_hash(content: Any) -> str:
    """16 hexadecimal digits of what JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """16 hexadecimal digits of the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def write_record(record: RunRecord, path: Path) -> None:
    """Write one line atomically: after a kill at any moment ``path`` holds all of it, or what it held before."""
    line = json.dumps(asdict(record), allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, line.encode())


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """After a kill at any moment ``path`` holds all the parts, or what it held before."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_records(path: Path) -> Iterator[RunRecord | DamagedRecordError]:
    """Every line of a file, or of all ``*.jsonl`` files of a folder: its record, or what is wrong with it.

    A file whose name ends in ``.gz`` is unpacked on the way.

    Raises:
        FileNotFoundError: no such file or folder.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; it must be a .jsonl file or a folder of them")
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        lines = _text(file).splitlines()
        if not lines:
            yield DamagedRecordError(f"{file}: empty")
        for number, line in enumerate(lines, start=1):
            try:
                yield _parse(line)
            except ValueError as error:
                yield DamagedRecordError(f"{file}, line {number}: {error}")


def _text(file: Path) -> str:
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    return content.decode("utf-8", errors="replace")


def _decoded(line: str) -> Any:
    """orjson is four times as fast; json reads NaN too, and says at which column a line is damaged."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return json.loads(line)


def _parse(line: str) -> RunRecord:
    try:
        content = _decoded(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON (column {error.colno}: {error.msg}); it may have been cut off") from None
    given = set(content) if isinstance(content, dict) else set()
    if NEEDED - given or given - NAMES:
        raise ValueError(f"not a run record: missing {sorted(NEEDED - given)}, unknown {sorted(given - NAMES)}")
    return RunRecord(**content)
