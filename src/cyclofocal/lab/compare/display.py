"""How far a comparison has come, on the terminal; lines now and then where there is none."""

import time
from collections.abc import Iterable, Mapping
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from cyclofocal.lab.compare.grid import Cell, CellError, Outcome
from cyclofocal.lab.records import RunRecord

LINE_SECONDS = 30.0
"""Between two lines, where there is no terminal."""


class Work:
    """What is left, in seconds of this backend: a cell costs the mean of its recipe's finished ones."""

    def __init__(self, cells: Iterable[Cell], done: Mapping[Cell, RunRecord]) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.left = [cell for cell in cells if cell not in done]
        self.worked, self.started = list[Cell](), time.monotonic()
        for cell, record in done.items():
            self._learn(cell, record)

    def end(self, cell: Cell, outcome: Outcome) -> None:
        """A cell has ended, well or not."""
        self.left.remove(cell)
        if isinstance(outcome, RunRecord):
            self._learn(cell, outcome)
            self.worked.append(cell)

    def seconds_left(self) -> float | None:
        """None before the first cell of this backend has ended."""
        if not self.worked:
            return None
        done, left = sum(map(self._cost, self.worked)), sum(map(self._cost, self.left))
        return left * (time.monotonic() - self.started) / done

    def _learn(self, cell: Cell, record: RunRecord) -> None:
        self.seconds.setdefault(cell.recipe.name, []).append(max(record.seconds, 1e-3))

    def _cost(self, cell: Cell) -> float:
        """Of a recipe that has none finished: the mean of all."""
        known = self.seconds.get(cell.recipe.name) or [second for all_ in self.seconds.values() for second in all_]
        return sum(known) / len(known)


class Display:
    """A bar over all runs with the failed ones and the time left."""

    def __init__(self, console: Console, cells: list[Cell], done: Mapping[Cell, RunRecord]) -> None:
        self.console, self.work = console, Work(cells, done)
        self.total, self.failed, self.told = len(cells), 0, time.monotonic()
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("[red]{task.fields[failed]}"), TimeElapsedColumn())
        shown = console.is_terminal and len(done) < len(cells)
        self.bar = Progress(TextColumn("training"), *columns, _Left(), console=console, disable=not shown)
        self.task = self.bar.add_task("training", total=self.total, completed=len(done), failed="", until=None)

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def end(self, cell: Cell, outcome: Outcome) -> None:
        """A cell has ended, well or not."""
        self.work.end(cell, outcome)
        self.failed += isinstance(outcome, CellError)
        left, now = self.work.seconds_left(), time.monotonic()
        until = None if left is None else now + left
        failed = f"{self.failed} failed" if self.failed else ""
        self.bar.update(self.task, advance=1, failed=failed, until=until)
        if not self.console.is_terminal and now - self.told > LINE_SECONDS:
            self.told = now
            ended = f"{self.total - len(self.work.left)} of {self.total} runs"
            self.console.print(", ".join(filter(None, (ended, failed, _clock(left) + " left"))), markup=False)


class _Left(ProgressColumn):
    """Counts down between two runs."""

    def render(self, task: Task) -> Text:
        until = task.fields["until"]
        return Text(f"{_clock(None if until is None else until - time.monotonic())} left", style="progress.remaining")


def _clock(seconds: float | None) -> str:
    return "-:--:--" if seconds is None else str(timedelta(seconds=max(0, round(seconds))))
