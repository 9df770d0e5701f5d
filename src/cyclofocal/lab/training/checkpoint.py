"""Atomic, checksummed training checkpoints."""

import hashlib
import io
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from cyclofocal.lab.records import write_atomically

KEEP_LAST = 2
"""Number of checkpoints that stay on disk; the older one is for when the newer is damaged."""

_HEADER = b"cyclofocal checkpoint, sha256 "


class DamagedCheckpointError(ValueError):
    """Checkpoint that differs from the one written; the message begins with its path."""


def save_checkpoint(folder: Path, epoch: int, content: dict[str, Any]) -> Path:
    """Write ``content`` as the checkpoint after ``epoch``, then remove all but the newest :data:`KEEP_LAST`.

    Args:
        content: what ``torch.load(weights_only=True)`` reads: tensors, numbers, strings, lists and dicts of them.
    """
    path = folder / f"checkpoint-{epoch:05d}.pt"
    write_checked(path, content)
    for older in checkpoints(folder)[KEEP_LAST:]:
        older.unlink()
    return path


def write_checked(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` atomically with its SHA-256, for :func:`load_checkpoint`."""
    payload = io.BytesIO()
    torch.save(content, payload)
    digest = hashlib.sha256(payload.getbuffer()).hexdigest().encode()
    write_atomically(path, _HEADER + digest + b"\n", payload.getbuffer())


def load_checkpoint(path: Path, needed: Iterable[str] = ()) -> dict[str, Any]:
    """Content of a checkpoint, on the CPU.

    Args:
        path: of the file.
        needed: names that must be in it.

    Raises:
        DamagedCheckpointError: cut off, changed, never a checkpoint, or without a name that is needed.
    """
    try:
        written = path.read_bytes()
    except OSError as error:
        raise DamagedCheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    header, _, payload = written.partition(b"\n")
    if not header.startswith(_HEADER):
        raise DamagedCheckpointError(f"{path}: not a checkpoint, or its beginning is damaged")
    if hashlib.sha256(payload).hexdigest().encode() != header.removeprefix(_HEADER):
        raise DamagedCheckpointError(f"{path}: damaged or cut off, its SHA-256 is not the one written with it")
    try:
        content = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, for a pickle can fail anywhere
        named = re.search(r"GLOBAL (\S+)", str(error))
        said = f"holds {named[1]}, and not tensors, numbers and text alone" if named else "torch cannot read it"
        raise DamagedCheckpointError(f"{path}: {said}") from None
    found = content.keys() if isinstance(content, dict) else set()
    if missing := sorted(set(needed) - found):
        raise DamagedCheckpointError(f"{path}: no {' and no '.join(missing)} in it")
    return content


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a folder, which need not be there, the newest first."""
    names = re.compile(r"checkpoint-\d+\.pt")
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if names.fullmatch(path.name)), reverse=True)


def epoch_of(path: Path) -> int:
    """Epoch of a checkpoint, from its name."""
    return int(path.stem.rpartition("-")[2])


def load_latest(
    folder: Path, needed: Iterable[str] = (), fault: Callable[[Path, dict[str, Any]], str] = lambda path, content: ""
) -> tuple[dict[str, Any] | None, list[DamagedCheckpointError]]:
    """Content of the newest whole checkpoint, None where there is none; and what is wrong with newer ones.

    Args:
        folder: of the run.
        needed: names that must be in it.
        fault: says what is wrong with the content of a file; "" if nothing is.
    """
    damaged: list[DamagedCheckpointError] = []
    for path in checkpoints(folder):
        try:
            content = load_checkpoint(path, needed)
            if said := fault(path, content):
                raise DamagedCheckpointError(f"{path}: {said}")
        except DamagedCheckpointError as error:
            damaged.append(error)
        else:
            return content, damaged
    return None, damaged
