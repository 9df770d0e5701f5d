"""Progress of a comparison: a bar on a terminal, lines now and then elsewhere."""

import math
import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from itertools import chain

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from cyclofocal.lab.compare.grid import Job, JobError, Outcome
from cyclofocal.lab.records import RunRecord

LINE_SECONDS = 30.0
"""Time between two lines, where there is no terminal; the first comes with the first estimate of the time left."""


class EtaEstimator:
    """Estimate of the time left with this backend: a job costs the mean of its recipe's finished ones.

    References, which are fitted in no time, and networks are counted apart. The time begins with the first run that
    ends, so without the start of the processes.
    """

    def __init__(self, jobs: Iterable[Job], done: Mapping[Job, RunRecord]) -> None:
        self.seconds: dict[tuple[str, bool], list[float]] = {}
        self.left = [job for job in jobs if job not in done]
        self.worked, self.created, self.started = list[Job](), time.monotonic(), math.inf
        for job, record in done.items():
            self._learn(job, record)

    def end(self, job: Job, outcome: Outcome) -> None:
        """Count a job that has ended, successfully or not."""
        self.left.remove(job)
        if isinstance(outcome, RunRecord):
            self._learn(job, outcome)
            self.worked.append(job)
            self.started = min(self.started, max(self.created, time.monotonic() - outcome.seconds))

    def seconds_left(self) -> float | None:
        """None before the first network of this backend has ended, or the first reference if there are no others."""
        if not self.worked or (all(map(_is_reference, self.worked)) and not all(map(_is_reference, self.left))):
            return None
        done, left = sum(map(self._cost, self.worked)), sum(map(self._cost, self.left))
        return left * (time.monotonic() - self.started) / done

    def _learn(self, job: Job, record: RunRecord) -> None:
        key = job.recipe.name, _is_reference(job)
        self.seconds.setdefault(key, []).append(max(record.seconds, 1e-3))

    def _cost(self, job: Job) -> float:
        """Mean seconds of the finished jobs of this recipe and kind; otherwise of this kind, or of all."""
        kind = _is_reference(job)
        alike = [second for key, all_ in self.seconds.items() if key[1] == kind for second in all_]
        known = self.seconds.get((job.recipe.name, kind)) or alike or list(chain(*self.seconds.values()))
        return sum(known) / len(known)


def _is_reference(job: Job) -> bool:
    return bool(job.loss.estimator)


class GridProgress:
    """A bar over all runs with the failed ones and the time left."""

    def __init__(self, console: Console, jobs: list[Job], done: Mapping[Job, RunRecord]) -> None:
        self.console, self.estimator = console, EtaEstimator(jobs, done)
        self.total, self.failed, self.printed, self.estimated = len(jobs), 0, time.monotonic(), False
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("[red]{task.fields[failed]}"), TimeElapsedColumn())
        shown = console.is_terminal and len(done) < len(jobs)
        self.bar = Progress(TextColumn("training"), *columns, _Left(), console=console, disable=not shown)
        self.task = self.bar.add_task("training", total=self.total, completed=len(done), failed="", until=None)

    def __enter__(self) -> "GridProgress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def end(self, job: Job, outcome: Outcome) -> None:
        """Count a job that has ended, successfully or not."""
        self.estimator.end(job, outcome)
        self.failed += isinstance(outcome, JobError)
        left, now = self.estimator.seconds_left(), time.monotonic()
        until = None if left is None else now + left
        failed = f"{self.failed} failed" if self.failed else ""
        self.bar.update(self.task, advance=1, failed=failed, until=until)
        first = not self.estimated and left is not None and bool(self.estimator.left)
        self.estimated |= first
        if not self.console.is_terminal and (first or now - self.printed > LINE_SECONDS):
            self.printed = now
            ended = f"{self.total - len(self.estimator.left)} of {self.total} runs"
            about = "" if left is None else f"about {_clock(left)} left"
            self.console.print(", ".join(filter(None, (ended, failed, about))), markup=False)


class _Left(ProgressColumn):
    """Time left, counted down between two runs."""

    def render(self, task: Task) -> Text:
        until = task.fields["until"]
        return Text(f"{_clock(None if until is None else until - time.monotonic())} left", style="progress.remaining")


def _clock(seconds: float | None) -> str:
    return "-:--:--" if seconds is None else str(timedelta(seconds=max(0, round(seconds))))
