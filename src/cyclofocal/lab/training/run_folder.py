"""The folder of a run: its identity, its epochs so far, and in the end its record."""

import json
import math
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cyclofocal.lab.hashes import content_hash
from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.records import (
    DamagedRecordError,
    RunRecord,
    has_stopped,
    not_a_file,
    read_records,
    versions,
    write_atomically,
    write_record,
)
from cyclofocal.lab.schema import short
from cyclofocal.lab.training import checkpoint

Row = dict[str, Any]

MAX_NAME_LENGTH = 80
"""Longest readable part of a path, in letters; run.json has the full names."""

FILES = ("run.json", "epochs.jsonl", "record.jsonl")
"""Files of a run; its checkpoints are the others."""

LEFTOVER = re.compile(
    r"\.(run\.json|epochs\.jsonl|record\.jsonl|checkpoint-\d+\.pt|predictions\.npz|model\.json|model\.safetensors"
    r"|vectorizer\.skops)-\w+\.tmp"
)
"""Name of a file that a killed process was writing."""


CHECKPOINT_PARTS: dict[str, tuple[tuple[type, ...], str]] = {
    "seconds": ((int, float), "a number"),
    "data": ((str,), "text"),
    **dict.fromkeys(("run", "model", "optimizer", "criterion", "average", "best"), ((dict,), "a dictionary")),
}
"""Types of the parts of a checkpoint but its rows, and the same in words."""


class RunMismatchError(ValueError):
    """A folder or file of another run than the one asked for; the message says in what they differ."""


class DamagedRunError(ValueError):
    """A file of a run that cannot be used; the message begins with its path, and says what to do."""


def run_folder(root: Path, recipe: Recipe, loss: LossSettings, seed: int) -> Path:
    """``root/RECIPE/LOSS-seedK-HASH``; the hash is of all that decides the numbers.

    The readable parts hold letters, digits and ``.,=+_-`` alone, which every file system takes.
    """
    fold = f"-fold{part[0]}" if (part := recipe.data.cross_validation) else ""
    readable = f"{_plain(loss.name)[:MAX_NAME_LENGTH]}-seed{seed}{fold}"
    return root / _plain(recipe.name)[:MAX_NAME_LENGTH] / f"{readable}-{content_hash(identity(recipe, loss, seed))}"


def identity(recipe: Recipe, loss: LossSettings, seed: int) -> dict[str, Any]:
    """Identity of a run as JSON: everything that determines its numbers."""
    content = {"recipe": recipe.flat(), "loss": loss.flat(), "seed": seed, "versions": _versions(loss.estimator)}
    return json.loads(json.dumps(content))


def identity_of(record: RunRecord) -> dict[str, Any]:
    """The :func:`identity` of the run that a record is of, with ``"test": False`` if the test set was left alone."""
    content = {"recipe": record.recipe, "loss": record.loss, "seed": record.seed, "versions": record.versions}
    return content if record.metrics else content | {"test": False}


def stored_identity(folder: Path) -> dict[str, Any]:
    """The :func:`identity` of the run that a folder holds.

    Raises:
        FileNotFoundError: there is none.
        DamagedRunError: ``run.json`` says no such thing.
    """
    path = folder / "run.json"
    refuse_obstacle(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        wrong = "" if isinstance(found, dict) else "not a dictionary"
    except (ValueError, RecursionError):
        wrong = "empty" if not path.stat().st_size else "not JSON; it may have been cut off"
    if wrong:
        raise DamagedRunError(
            f"{path}: {wrong}. It says which run the folder holds: restore it, or remove the folder, or use another"
        )
    return found


def stored_record(path: Path) -> tuple[RunRecord | None, list[DamagedRecordError]]:
    """The record of a run that has ended, None if missing or damaged; and the problems found.

    A record with more or fewer epochs than its recipe says is damaged; one of a reference has none.

    Raises:
        DamagedRunError: there is something else than a file.
    """
    refuse_obstacle(path)
    lines = list(read_records(path)) if path.exists() else []
    lines = [_all_epochs(path, number, line) for number, line in enumerate(lines, start=1)]
    records = [line for line in lines if isinstance(line, RunRecord)]
    return next(iter(records), None), [line for line in lines if isinstance(line, DamagedRecordError)]


def check_same(path: Path, found: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuse a file of another run.

    Raises:
        RunMismatchError: says in what the two differ.
    """
    if differences := _differences(found, asked):
        raise RunMismatchError(
            f"{path} is of another run ({'; '.join(differences)}); move it out of this folder, and run the same"
            " command again"
        )


def refuse_obstacle(path: Path) -> None:
    """Refuse a path of a run's file that is a folder or a broken link.

    Raises:
        DamagedRunError: says what lies there.
    """
    if found := not_a_file(path):
        raise DamagedRunError(
            f"{path}: {found}, where a run has a file; move or remove it, and run the same command again"
        )


def check_folder(folder: Path, asked: dict[str, Any]) -> bool:
    """Refuse a folder of another run, or whose paths are not files; return True if it holds this run.

    Raises:
        RunMismatchError: says in what the runs differ.
        DamagedRunError: a file in it cannot be used, or something else lies in its place.
    """
    for path in (*map(folder.joinpath, FILES), *checkpoint.checkpoints(folder)):
        refuse_obstacle(path)
    if not (folder / "run.json").exists():
        return False
    if differences := _differences(stored_identity(folder), asked):
        raise RunMismatchError(
            f"{folder} holds another run ({'; '.join(differences)}); choose another folder, or remove it"
        )
    return True


@contextmanager
def lock_run(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Lock a run folder exclusively; yields True if acquired.

    The OS releases the lock when the process exits. Between machines it needs a shared file system with ``flock``.

    Args:
        folder: of the run; it is made if missing.
        wait: for another process to release it; else yield False at once.

    Raises:
        DamagedRunError: the path of the lock is no file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    refuse_obstacle(folder / "lock")
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


class RunFolder:
    """A run's folder: ``run.json``, ``epochs.jsonl`` (a line per epoch), checkpoints, ``record.jsonl`` at the end.

    Args:
        folder: may be new.
        run: its :func:`identity`.
        writes: False for all processes of a run but the first.
        checkpoint_seconds: least time between two checkpoints, which are then removed at the end; 0 saves one after
            every epoch, and leaves the newest.
        last_epoch: epoch whose checkpoint is saved whatever the interval, and not removed; None: there is none.

    Raises:
        RunMismatchError: the folder holds a run of another recipe, loss, seed or version.
        DamagedRunError: a file in it cannot be used, or something else lies in its place.
    """

    def __init__(
        self,
        folder: Path,
        run: dict[str, Any],
        writes: bool = True,
        checkpoint_seconds: float = 0,
        last_epoch: int | None = None,
    ) -> None:
        self.folder, self.identity, self.last_epoch = folder, run, last_epoch
        self.checkpoint_seconds, self.saved_at = checkpoint_seconds, time.monotonic()
        self.record_path, self.epochs_path = folder / "record.jsonl", folder / "epochs.jsonl"
        if not check_folder(folder, run) and writes:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "run.json", json.dumps(run, indent=1).encode())

    def load_latest(
        self, needed: Iterable[str] = ()
    ) -> tuple[dict[str, Any] | None, list[checkpoint.DamagedCheckpointError]]:
        """Newest whole checkpoint that has all that is needed, and what is wrong with newer ones.

        Raises:
            RunMismatchError: it is a checkpoint of another run.
        """
        needed = {*needed}
        content, damaged = checkpoint.load_latest(self.folder, needed, partial(self._fault, needed=needed))
        if content is not None and "run" in content:  # older ones do not say whose they are
            check_same(checkpoint.checkpoints(self.folder)[len(damaged)], content["run"], self.identity)
        return content, damaged

    def _fault(self, path: Path, content: dict[str, Any], needed: set[str]) -> str:
        """Fault of a checkpoint in the parts that are needed, and in its identity; "" if there is none."""
        for name, (kinds, words) in CHECKPOINT_PARTS.items():
            if name in content and name in needed | {"run"} and not isinstance(content[name], kinds):
                return f"{name} is {type(content[name]).__name__}; it must be {words}"
            if isinstance(content.get(name), dict) and not all(isinstance(key, str) for key in content[name]):
                return f"{name} has a name that is not text"
        if "run" in content and not _is_json(content["run"]):
            return "run holds what is neither text nor a finite number"
        if "seconds" in needed and not math.isfinite(content["seconds"]):
            return f"seconds is {content['seconds']}; it must be finite"
        if "rows" in needed and (said := _rows_fault(content["rows"], checkpoint.epoch_of(path))):
            return said
        total, same = _total_epochs(self.identity["recipe"]), content.get("run", self.identity) == self.identity
        if same and checkpoint.epoch_of(path) >= total:
            return f"it is of epoch {checkpoint.epoch_of(path)}; the last epoch of this run is {total - 1}"
        return ""

    def resume(
        self, needed: Iterable[str] = ()
    ) -> tuple[dict[str, Any] | None, list[checkpoint.DamagedCheckpointError]]:
        """:meth:`load_latest`; rows after it are cut off."""
        content, damaged = self.load_latest({"rows", *needed})
        for leftover in self.folder.iterdir():
            if LEFTOVER.fullmatch(leftover.name) and leftover.is_file():
                leftover.unlink()
        rows = content["rows"] if content else []
        write_atomically(self.epochs_path, "".join(map(_line, rows)).encode())
        return content, damaged

    def save_epoch(self, epoch: int, content: dict[str, Any]) -> None:
        """Write the last of ``content["rows"]`` and, if it is time, a checkpoint."""
        with self.epochs_path.open("a", encoding="utf-8") as file:
            file.write(_line(content["rows"][-1]))
        if epoch == self.last_epoch or time.monotonic() - self.saved_at >= self.checkpoint_seconds:
            checkpoint.save_checkpoint(self.folder, epoch, content | {"run": self.identity})
            self.saved_at = time.monotonic()

    def finish(self, record: RunRecord) -> None:
        """Write the record; from now on the run is finished."""
        write_record(record, self.record_path)
        if self.checkpoint_seconds:  # the newest need not be of the last epoch, for which it might be taken
            for path in checkpoint.checkpoints(self.folder)[0 if self.last_epoch is None else 1 :]:
                path.unlink()


_versions = cache(versions)
"""Cached, for they are read from disk, and a comparison asks for every run."""


def _plain(name: str) -> str:
    return re.sub(r"[^\w.,=+-]", "-", name, flags=re.ASCII)


def _all_epochs(path: Path, number: int, line: RunRecord | DamagedRecordError) -> RunRecord | DamagedRecordError:
    """The line, or an error if it is a record without a row for every epoch of its recipe, and did not stop early."""
    if isinstance(line, DamagedRecordError):
        return line
    rows, total = len(line.epochs), 0 if line.is_reference else _total_epochs(line.recipe)
    if rows == total:
        return line
    if rows < total and has_stopped(line.epochs, line.recipe.get("early_stopping", 0)):
        return line
    return DamagedRecordError(path, f"epochs has {rows} rows; it must have {total}, as the recipe says", number)


def _total_epochs(recipe: dict[str, Any]) -> int:
    """Epochs of a recipe's schedule and of its cooldown, which old records do not have."""
    return recipe["epochs"] + recipe.get("cooldown_epochs", 0)


def _rows_fault(rows: Any, epoch: int) -> str:
    """Fault of the rows of a checkpoint after ``epoch``; "" if there is none."""
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        return "rows is not a list of dictionaries of finite numbers"
    if [row.get("epoch") for row in rows] != list(range(epoch + 1)):
        return f"it has {len(rows)} rows; it must have one of each epoch from 0 to {epoch}, as its name says"
    if any(row.get("seconds") is None for row in rows):
        return "a row has no seconds"
    return ""


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and all(
        isinstance(name, str)
        and (value is None or type(value) is int or (type(value) is float and math.isfinite(value)))
        for name, value in row.items()
    )


def _is_json(content: Any) -> bool:
    try:
        json.dumps(content, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _differences(found: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """Describe the differences by their innermost names."""
    said = []
    for key in sorted(found.keys() | asked.keys(), key=str):
        there, here = found.get(key), asked.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            said += _differences(there, here)
        elif isinstance(here, dict):
            said.append(f"{key}: {short(there)} there")
        elif there != here:
            said.append(f"{key}: {there!r} there, {here!r} now")
    return said
