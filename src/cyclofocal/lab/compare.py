"""A grid of losses and seeds on one recipe: every cell an independent run, finished ones never run twice."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

from cyclofocal.lab.recipes.recipe import LossSettings, Recipe
from cyclofocal.lab.records import DamagedRecordError, RunRecord, cell_name, read_records, versions, write_record


@dataclass(frozen=True)
class Cell:
    """One run of the grid, the file that holds its record once it has finished, and where data sets are looked for."""

    recipe: Recipe
    loss: LossSettings
    seed: int
    path: Path
    root: Path = Path("data")
    command: str = ""


class CellError(RuntimeError):
    """A run failed; the message says which and why."""


def grid(
    recipe: Recipe,
    losses: Sequence[LossSettings],
    seeds: Iterable[int],
    folder: Path,
    root: Path = Path("data"),
    command: str = "",
) -> list[Cell]:
    """Every loss at every seed, seed by seed so that pairs are complete early."""
    now = versions()
    return [
        Cell(recipe, loss, seed, folder / cell_name(asdict(recipe), asdict(loss), seed, now), root, command)
        for seed in seeds
        for loss in losses
    ]


def finished(cells: Iterable[Cell]) -> tuple[dict[Cell, RunRecord], list[DamagedRecordError]]:
    """Records of the cells that have one, and what is wrong with files that hold none (they will run again)."""
    records: dict[Cell, RunRecord] = {}
    damaged: list[DamagedRecordError] = []
    for cell in cells:
        for line in read_records(cell.path) if cell.path.exists() else ():
            if isinstance(line, RunRecord):
                records[cell] = line
            else:
                damaged.append(line)
    return records, damaged


def run(cells: Sequence[Cell], workers: int, on_record: Callable[[RunRecord], None]) -> dict[Cell, RunRecord]:
    """Run the cells in ``workers`` processes of one thread each; every record is on disk before it is reported.

    The number of workers changes the time and nothing else.

    Raises:
        CellError: a run failed or a worker was killed; finished runs are kept.
    """
    if not cells:
        return {}
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(cells)), mp_context=context, initializer=_start_worker)
    records = {}
    try:
        futures = {pool.submit(run_cell, cell): cell for cell in cells}
        for future in as_completed(futures):
            cell = futures[future]
            records[cell] = _result(future.result, cell)
            on_record(records[cell])
    finally:
        pool.shutdown(cancel_futures=True)
    return records


def run_cell(cell: Cell) -> RunRecord:
    """Train one cell and write its record."""
    from cyclofocal.lab.train import Setup, train

    record = train(cell.recipe, cell.loss, cell.seed, Setup(root=cell.root, command=cell.command))
    write_record(record, cell.path)
    return record


def _result(result: Callable[[], RunRecord], cell: Cell) -> RunRecord:
    try:
        return result()
    except BrokenProcessPool as error:
        raise CellError("a worker process was killed (out of memory?)") from error
    except Exception as error:
        raise CellError(f"{cell.loss.title}, seed {cell.seed}: {type(error).__name__}: {error}") from error


def _start_worker() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which lets this run finish
    torch.set_num_threads(1)  # also what makes a record independent of the number of workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's workers would wait for ever if the parent is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
