"""Benchmark records: one JSON line per loss and shape, the source of tables and figure."""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cyclofocal import kernels
from cyclofocal.lab.bench.measure import Case, Result
from cyclofocal.lab.records import processor


class Setting(NamedTuple):
    """Conditions that must be equal for times to be comparable across shapes."""

    device: str
    processor: str
    instructions: str
    threads: int
    pinned: str | None
    heap: str
    dtype: str

    def __str__(self) -> str:
        cores = f"{self.processor} with {self.instructions}, {self.threads} thread{'s' * (self.threads != 1)}"
        where = f"{cores}, {self.heap} heap" if self.device == "cpu" else self.device
        return f"{where}, {self.dtype}"


@dataclass(frozen=True)
class Measurement:
    """Measurement of one loss on one shape, with its conditions.

    Attributes:
        loss: its title.
        family: "softmax", "sigmoid" or "layer".
        settings: its arguments, as text.
        backend: kernel backend that computed it; "" for losses of other packages.
        shape: shape (N, C, ...) of the logits, or (N, D, C) of a last layer.
        dtype: dtype of the logits.
        device: "cpu", or the name of the GPU.
        processor: name of the CPU.
        instructions: vector instructions of the CPU that torch uses: "AVX512", "AVX2" or "DEFAULT".
        threads: number of torch's threads.
        pinned: OMP_PROC_BIND at the start of the process; None if not set.
        heap: "warm" (freed memory is retained) or "default".
        versions: versions of Python, cyclofocal and every measured package.
        kernels: result of ``cyclofocal.kernels.describe()``.
        rounds: number of rounds in which the loss took part.
        milliseconds: time of forward and backward; 20 %, 50 % and 80 % quantile, None if skipped.
        ratio: time divided by that of the family's loss of torch in the same round; same quantiles.
        peak_memory: peak beyond logits and target, in units of the logits; includes the gradient.
        skipped: reason why it was not measured; "" if it was.
    """

    loss: str
    family: str
    settings: str
    backend: str
    shape: list[int]
    dtype: str
    device: str
    processor: str
    instructions: str
    threads: int
    pinned: str | None
    heap: str
    versions: dict[str, str]
    kernels: dict[str, str]
    rounds: int
    milliseconds: list[float] | None
    ratio: list[float] | None
    peak_memory: float | None
    skipped: str

    @property
    def is_cyclofocal(self) -> bool:
        return bool(self.backend)

    @property
    def setting(self) -> Setting:
        return Setting(**{name: getattr(self, name) for name in Setting._fields})

    @property
    def shape_title(self) -> str:
        return Case(tuple(self.shape), self.dtype).title


def measurements(case: Case, results: Sequence[Result], device: str, heap: str) -> list[Measurement]:
    """Convert the results of one shape to records."""
    packages = sorted({"torch", "cyclofocal", *(r.candidate.package for r in results if r.candidate.package)})
    surroundings: dict[str, Any] = {
        "shape": list(case.shape),
        "dtype": case.dtype,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "pinned": os.environ.get("OMP_PROC_BIND"),
        "heap": heap,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "kernels": kernels.describe(),
    }
    return [
        Measurement(
            loss=result.candidate.title,
            family=result.candidate.family,
            settings=result.candidate.settings,
            backend=result.candidate.backend,
            **surroundings,
            rounds=result.rounds,
            milliseconds=list(result.milliseconds) if result.milliseconds else None,
            ratio=list(result.ratio) if result.ratio else None,
            peak_memory=result.peak_memory,
            skipped=result.skipped,
        )
        for result in results
    ]


def append_measurements(records: Iterable[Measurement], path: Path) -> None:
    """Append one line per record, in a single write."""
    lines = "".join(json.dumps(asdict(record), allow_nan=False) + "\n" for record in records)
    with path.open("a", encoding="utf-8") as file:
        file.write(lines)


def read_measurements(path: Path) -> list[Measurement]:
    """Read a file of records; of repeated measurements in the same setting, return the last.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is not a record; the message gives its number.
    """
    latest: dict[Any, Measurement] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = _parse(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        latest[record.loss, tuple(record.shape), record.setting] = record
    return list(latest.values())


def _parse(line: str) -> Measurement:
    content = json.loads(line)
    names = {field.name for field in fields(Measurement)}
    if not isinstance(content, dict) or set(content) != names:
        given = set(content) if isinstance(content, dict) else set()
        raise ValueError(f"not a measurement: missing {sorted(names - given)}, unknown {sorted(given - names)}")
    return Measurement(**content)
