"""The folder of a run: what it is, how far it has come, and in the end its record."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cyclofocal.lab import checkpoint
from cyclofocal.lab.recipes.recipe import LossSettings, Recipe
from cyclofocal.lab.records import RunRecord, content_hash, read_records, versions, write_atomically, write_record

Row = dict[str, Any]


class OtherRunError(ValueError):
    """A folder that holds another run than the one asked for; the message says in what they differ."""


def run_folder(root: Path, recipe: Recipe, loss: LossSettings, seed: int) -> Path:
    """``root/RECIPE/LOSS-seedK-HASH``; the hash is of all that decides the numbers."""
    return root / recipe.name / f"{loss.name}-seed{seed}-{content_hash(identity(recipe, loss, seed))}"


def identity(recipe: Recipe, loss: LossSettings, seed: int) -> dict[str, Any]:
    """All that decides the numbers of a run, as JSON has it."""
    content = {"recipe": asdict(recipe), "loss": asdict(loss), "seed": seed, "versions": versions()}
    return json.loads(json.dumps(content))


class Run:
    """A run's folder: ``run.json``, ``epochs.jsonl`` (a line per epoch), checkpoints, ``record.jsonl`` at the end.

    Raises:
        OtherRunError: the folder holds a run of another recipe, loss, seed or version.
    """

    def __init__(self, folder: Path, run: dict[str, Any], writes: bool = True) -> None:
        self.folder, self.identity, self.writes = folder, run, writes
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
        """Write the last of ``content["rows"]`` and a checkpoint."""
        with self.epochs_path.open("a", encoding="utf-8") as file:
            file.write(_line(content["rows"][-1]))
        checkpoint.save(self.folder, epoch, content)

    def finish(self, record: RunRecord) -> None:
        """Write the record; from now on the run is finished."""
        write_record(record, self.record_path)

    def _check(self, found: dict[str, Any]) -> None:
        differences = _differences(found, self.identity)
        if differences:
            raise OtherRunError(
                f"{self.folder} holds another run ({'; '.join(differences)}); choose another folder, or remove it"
            )


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
