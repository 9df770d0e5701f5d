"""The cells of a comparison: independent runs, each in a folder that ``cyclofocal reproduce`` uses as well."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cyclofocal.lab.metrics import PRIMARY
from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.records import DamagedRecordError, RunRecord
from cyclofocal.lab.training.run_folder import (
    DamagedRunError,
    OtherRunError,
    check_same,
    identity,
    identity_of,
    locked,
    run_folder,
    stored_record,
)

if TYPE_CHECKING:
    from cyclofocal.lab.training.train import Setup

CHECKPOINT_SECONDS = 30.0
"""Between two checkpoints of a cell; shorter runs write none."""

NOT_TUNED = ("name", "title", "file", "digest", "trials")
"""Fields of a loss that tuning leaves as they are."""


@dataclass(frozen=True)
class Cell:
    """One run of the grid, the folder that holds its record once it has finished, and where data is looked for."""

    recipe: Recipe
    loss: LossSettings
    seed: int
    folder: Path
    root: Path = Path("data")
    command: str = ""
    primary_metric: str = PRIMARY

    @property
    def record_path(self) -> Path:
        """Where its record is, once it has finished."""
        return self.folder / "record.jsonl"

    @property
    def title(self) -> str:
        """For people."""
        part = self.recipe.data.cross_validation
        fold = f", fold {part[0] + 1} of {part[1]}" if part else ""
        return f"{self.recipe.name}, {self.loss.title}, seed {self.seed}{fold}"


@dataclass(frozen=True)
class Share:
    """What one run gets of a machine; it changes the numbers by rounding at most.

    Attributes:
        cpus: threads, at least 1.
        gpus: part of a device, at most 1; 0 stays on the CPU.
    """

    cpus: int = 1
    gpus: float = 0.0


ONE_CORE = Share()


class CellError(RuntimeError):
    """A run failed; the message says which and why."""


class BackendError(RuntimeError):
    """No run can begin: the cluster is not there or does not take them."""


Outcome = RunRecord | CellError

Backend = Callable[[Sequence[Cell]], Generator[tuple[Cell, Outcome], None, None]]
"""Runs cells and yields each with its record, or with what went wrong, as they end; closing it stops the others."""


def grid(
    recipes: Iterable[Recipe],
    losses: Sequence[LossSettings],
    seeds: Iterable[int],
    folder: Path,
    root: Path = Path("data"),
    command: str = "",
    primary_metric: str = PRIMARY,
) -> list[Cell]:
    """Every loss at every seed and fold of every experiment, seed by seed so that pairs are complete early."""
    experiments = [fold for recipe in recipes for fold in folds(recipe)]
    return [
        Cell(recipe, loss, seed, run_folder(folder, recipe, loss, seed), root, command, primary_metric)
        for seed in seeds
        for recipe in experiments
        for loss in losses
    ]


def folds(recipe: Recipe) -> list[Recipe]:
    """The recipe at each fold of its cross-validation; itself where it has none."""
    part = recipe.data.cross_validation
    return [recipe.with_data(fold=fold) for fold in range(part[1])] if part else [recipe]


def finished(cells: Iterable[Cell]) -> tuple[dict[Cell, RunRecord], list[DamagedRecordError]]:
    """Records of the cells that have one, and what is wrong with files that hold none (they will run again).

    A cell whose folder holds the record of another run has none; :func:`run_cell` says so.
    """
    records: dict[Cell, RunRecord] = {}
    damaged: list[DamagedRecordError] = []
    for cell in cells:
        try:
            record, faults = _stored(cell)
        except (DamagedRunError, OtherRunError):
            continue
        damaged += faults
        if record is not None:
            records[cell] = record
    return records, damaged


def run_cell(cell: Cell, share: Share, wait: bool = True) -> RunRecord | None:
    """Train one cell, with its tuning, unless another process does.

    Args:
        cell: of the grid.
        share: of this machine.
        wait: for a process that runs the cell already.

    Returns:
        The record, which is on disk; None where another process runs the cell and ``wait`` is False.

    Raises:
        OtherRunError, DamagedRunError: the cell's folder holds what is not its own.
        What training raises.
    """
    import torch

    from cyclofocal.lab.training.train import Setup, train

    torch.set_num_threads(share.cpus)
    with locked(cell.folder, wait) as held:
        if not held:
            return None
        if (done := _stored(cell)[0]) is not None:
            return done
        setup = Setup(
            cell.root,
            cell.folder,
            cpu=share.gpus == 0,
            command=cell.command,
            checkpoint_seconds=CHECKPOINT_SECONDS,
            primary_metric=cell.primary_metric,
        )
        return train(cell.recipe, _settled(cell, setup), cell.seed, setup)


def failure(cell: Cell, error: BaseException) -> CellError:
    """The error of a cell, in one line."""
    said = " ".join(str(error).split())
    return CellError(f"{cell.title}: {type(error).__name__}{f': {said}' if said else ''}")


def _stored(cell: Cell) -> tuple[RunRecord | None, list[DamagedRecordError]]:
    """The cell's record, and what is damaged."""
    record, damaged = stored_record(cell.record_path)
    if record is not None:
        asked = identity(cell.recipe, cell.loss, cell.seed)
        asked["versions"] = record.versions  # of the node that ran it; a report tells where they are mixed
        if cell.loss.trials:
            asked["loss"] = record.loss | {name: asked["loss"][name] for name in NOT_TUNED}
        check_same(cell.record_path, identity_of(record), asked)
    return record, damaged


def _settled(cell: Cell, setup: "Setup") -> LossSettings:
    """The cell's loss; at the best settings, where it is to be tuned."""
    if not cell.loss.trials:
        return cell.loss
    from cyclofocal.lab.compare.tuning import tuned

    return tuned(cell.recipe, cell.loss, cell.seed, setup)
