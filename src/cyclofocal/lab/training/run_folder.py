"""The folder of a run: what it is, how far it has come, and in the end its record."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cyclofocal.lab.hashes import content_hash
from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.records import RunRecord, read_records, versions, write_atomically, write_record
from cyclofocal.lab.training import checkpoint

Row = dict[str, Any]

LONGEST = 80
"""Letters of a readable part of a path; the whole is in run.json."""


class OtherRunError(ValueError):
    """A folder that holds another run than the one asked for; the message says in what they differ."""


def run_folder(root: Path, recipe: Recipe, loss: LossSettings, seed: int) -> Path:
    """``root/RECIPE/LOSS-seedK-HASH``; the hash is of all that decides the numbers.

    The readable parts hold letters, digits and ``.,=+_-`` alone, which every file system takes.
    """
    fold = f"-fold{recipe.fold}" if recipe.folds else ""
    readable = f"{_plain(loss.name)[:LONGEST]}-seed{seed}{fold}"
    return root / _plain(recipe.name)[:LONGEST] / f"{readable}-{content_hash(identity(recipe, loss, seed))}"


def identity(recipe: Recipe, loss: LossSettings, seed: int) -> dict[str, Any]:
    """All that decides the numbers of a run, as JSON has it."""
    content = {"recipe": asdict(recipe), "loss": asdict(loss), "seed": seed, "versions": _versions()}
    return json.loads(json.dumps(content))


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the folder of a run, so that no other process runs it; whether it is held.

    The system lets go of it when the process ends in any way. Between machines it holds where their shared file
    system knows ``flock``.

    Args:
        folder: of the run; it is made.
        wait: until another process lets go of it; else False is given at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


class Run:
    """A run's folder: ``run.json``, ``epochs.jsonl`` (a line per epoch), checkpoints, ``record.jsonl`` at the end.

    Args:
        folder: may be new.
        run: its :func:`identity`.
        writes: False for all processes of a run but the first.
        checkpoint_seconds: at least so long between two checkpoints, which are then removed at the end; 0 keeps one
            after every epoch, and the newest for good.

    Raises:
        OtherRunError: the folder holds a run of another recipe, loss, seed or version.
    """

    def __init__(self, folder: Path, run: dict[str, Any], writes: bool = True, checkpoint_seconds: float = 0) -> None:
        self.folder, self.identity, self.writes = folder, run, writes
        self.checkpoint_seconds, self.kept_at = checkpoint_seconds, time.monotonic()
        self.record_path, self.epochs_path = folder / "record.jsonl", folder / "epochs.jsonl"
        if (folder / "run.json").exists():
            self._check(json.loads((folder / "run.json").read_text(encoding="utf-8")))
        elif writes:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "run.json", json.dumps(run, indent=1).encode())

    def finished(self) -> RunRecord | None:
        """The record of a run that has ended; None where there is none, or a damaged one."""
        if not self.record_path.exists():
            return None
        for line in read_records(self.record_path):
            if isinstance(line, RunRecord):
                return line
        return None

    def resume(self) -> tuple[dict[str, Any] | None, list[checkpoint.DamagedCheckpointError]]:
        """Newest whole checkpoint and what is wrong with newer ones; rows after it are cut off."""
        for leftover in self.folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            leftover.unlink()
        content, damaged = checkpoint.newest(self.folder)
        rows = content["rows"] if content else []
        write_atomically(self.epochs_path, "".join(map(_line, rows)).encode())
        return content, damaged

    def keep(self, epoch: int, content: dict[str, Any]) -> None:
        """Write the last of ``content["rows"]`` and, if it is time, a checkpoint."""
        with self.epochs_path.open("a", encoding="utf-8") as file:
            file.write(_line(content["rows"][-1]))
        if time.monotonic() - self.kept_at >= self.checkpoint_seconds:
            checkpoint.save(self.folder, epoch, content)
            self.kept_at = time.monotonic()

    def finish(self, record: RunRecord) -> None:
        """Write the record; from now on the run is finished."""
        write_record(record, self.record_path)
        if self.checkpoint_seconds:  # the newest need not be of the last epoch, for which it might be taken
            for path in checkpoint.checkpoints(self.folder):
                path.unlink()

    def _check(self, found: dict[str, Any]) -> None:
        differences = _differences(found, self.identity)
        if differences:
            raise OtherRunError(
                f"{self.folder} holds another run ({'; '.join(differences)}); choose another folder, or remove it"
            )


_versions = cache(versions)
"""They are looked up on the disk, and a comparison asks for every run."""


def _plain(name: str) -> str:
    return re.sub(r"[^\w.,=+-]", "-", name, flags=re.ASCII)


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _differences(found: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """In words, by the innermost names."""
    said = []
    for key in sorted(found.keys() | asked.keys()):
        there, here = found.get(key), asked.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            said += _differences(there, here)
        elif there != here:
            said.append(f"{key}: {there!r} there, {here!r} now")
    return said
