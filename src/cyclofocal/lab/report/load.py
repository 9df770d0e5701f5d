"""Load records from files and folders; report damaged and unfinished ones."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cyclofocal.lab.records import DamagedRecordError, RunRecord, read_file

OF_A_RUN, RECORD_OF_A_RUN = "run.json", "record.jsonl"
"""Files of a run folder, in which only the second holds a record; the other lines are epochs."""


class StoredRuns(NamedTuple):
    """Records, the file of each, and the problems found."""

    records: list[RunRecord]
    files: list[Path]
    problems: list[str]


def read_runs(paths: Sequence[Path]) -> tuple[list[RunRecord], list[str]]:
    """Records and problems of :func:`read_stored_runs`.

    Raises:
        FileNotFoundError: a path that does not exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_runs([Path(folder)])[0]
        []
    """
    found = read_stored_runs(paths)
    return found.records, found.problems


def read_stored_runs(paths: Sequence[Path]) -> StoredRuns:
    """Load all records of .jsonl files and of folders, searched recursively.

    Raises:
        FileNotFoundError: a path that does not exist.
    """
    records: list[RunRecord] = []
    files: list[Path] = []
    said: list[str] = []
    trials = unfinished = 0
    for file in dict.fromkeys(file for path in paths for file in _files(path)):
        if file.name == OF_A_RUN:
            unfinished += not (file.parent / RECORD_OF_A_RUN).exists()
            continue
        found, damaged = _read(file)
        said += damaged
        if file.name == RECORD_OF_A_RUN and found and (difference := _difference(file, found[0])):
            said.append(f"{file} is of another run than the {OF_A_RUN} next to it ({difference}); left out.")
            continue
        trials += sum(not record.metrics for record in found)
        evaluated = [record for record in found if record.metrics]
        records += evaluated
        files += [file] * len(evaluated)
    if unfinished:
        said.append(f"{_runs(unfinished)} not finished: left out.")
    if trials:
        said.append(f"{_runs(trials)} for tuning and never touched the test set: left out.")
    return StoredRuns(records, files, said)


def _difference(file: Path, record: RunRecord) -> str:
    """First difference between a record and the run.json of its folder; "" if there is none, or no such file."""
    try:
        run = json.loads((file.parent / OF_A_RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    if not isinstance(run, dict):
        return ""
    if run.get("seed", record.seed) != record.seed:
        return f"seed: {record.seed} in the record, {run['seed']} in run.json"
    return "another recipe" if run.get("recipe", record.recipe) != record.recipe else ""


def _runs(count: int) -> str:
    return f"{count} run was" if count == 1 else f"{count} runs were"


def _files(path: Path) -> Iterable[Path]:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; it must be a .jsonl file or a folder that holds some")
    if not path.is_dir():
        return [path]
    runs = sorted(path.rglob(OF_A_RUN))
    folders = {run.parent for run in runs}
    lines = sorted([*path.rglob("*.jsonl"), *path.rglob("*.jsonl.gz")])
    return [*runs, *(file for file in lines if file.parent not in folders or file.name == RECORD_OF_A_RUN)]


def _read(file: Path) -> tuple[list[RunRecord], list[str]]:
    """Records of a file, and its problems; lines with the same problem are reported once."""
    records: list[RunRecord] = []
    wrong: dict[str, list[int]] = {}
    for line in read_file(file):
        if isinstance(line, RunRecord):
            records.append(line)
        else:
            wrong.setdefault(line.fault, []).append(line.line)
    return records, [_told(file, fault, numbers) for fault, numbers in wrong.items()]


def _told(file: Path, fault: str, numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"{DamagedRecordError(file, fault, numbers[0])}; left out."
    return f"{file}, {len(numbers)} lines from {numbers[0]} on: {fault}; left out."
