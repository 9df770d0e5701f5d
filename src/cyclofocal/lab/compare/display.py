"""Progress of a comparison: a bar on a terminal, lines now and then elsewhere."""

import time
from collections.abc import Iterable, Mapping
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from cyclofocal.lab.compare.grid import Job, JobError, Outcome
from cyclofocal.lab.records import RunRecord

LINE_SECONDS = 30.0
"""Time between two lines, where there is no terminal; the first comes with the first run, with the time left."""


class EtaEstimator:
    """Estimate of the time left with this backend: a job costs the mean of its recipe's finished ones."""

    def __init__(self, jobs: Iterable[Job], done: Mapping[Job, RunRecord]) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.left = [job for job in jobs if job not in done]
        self.worked, self.started = list[Job](), time.monotonic()
        for job, record in done.items():
            self._learn(job, record)

    def end(self, job: Job, outcome: Outcome) -> None:
        """Count a job that has ended, successfully or not."""
        self.left.remove(job)
        if isinstance(outcome, RunRecord):
            self._learn(job, outcome)
            self.worked.append(job)

    def seconds_left(self) -> float | None:
        """None before the first job of this backend has ended."""
        if not self.worked:
            return None
        done, left = sum(map(self._cost, self.worked)), sum(map(self._cost, self.left))
        return left * (time.monotonic() - self.started) / done

    def _learn(self, job: Job, record: RunRecord) -> None:
        self.seconds.setdefault(job.recipe.name, []).append(max(record.seconds, 1e-3))

    def _cost(self, job: Job) -> float:
        """Mean seconds of the recipe's finished jobs; of all finished jobs where it has none."""
        known = self.seconds.get(job.recipe.name) or [second for all_ in self.seconds.values() for second in all_]
        return sum(known) / len(known)


class GridProgress:
    """A bar over all runs with the failed ones and the time left."""

    def __init__(self, console: Console, jobs: list[Job], done: Mapping[Job, RunRecord]) -> None:
        self.console, self.estimator = console, EtaEstimator(jobs, done)
        self.total, self.failed, self.printed = len(jobs), 0, time.monotonic()
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
        first = len(self.estimator.worked) == 1 and isinstance(outcome, RunRecord) and bool(self.estimator.left)
        if not self.console.is_terminal and (first or now - self.printed > LINE_SECONDS):
            self.printed = now
            ended = f"{self.total - len(self.estimator.left)} of {self.total} runs"
            self.console.print(", ".join(filter(None, (ended, failed, f"about {_clock(left)} left"))), markup=False)


class _Left(ProgressColumn):
    """Time left, counted down between two runs."""

    def render(self, task: Task) -> Text:
        until = task.fields["until"]
        return Text(f"{_clock(None if until is None else until - time.monotonic())} left", style="progress.remaining")


def _clock(seconds: float | None) -> str:
    return "-:--:--" if seconds is None else str(timedelta(seconds=max(0, round(seconds))))
