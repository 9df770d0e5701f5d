"""Progress of a run: a bar on a terminal, lines elsewhere, the first of them within the first epoch."""

import time
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS = 0.25
"""Time between two updates, whose numbers must be fetched from the device."""


EARLY_SECONDS = 10.0
"""Time to the one line within an epoch, where there is no terminal."""

EPOCH_LINE_SECONDS = 1.0
"""Time between two lines of epochs; shorter epochs share one."""


class RunProgress:
    """A bar over all epochs with loss, accuracy, images per second and time left; silent if ``shown`` is False."""

    def __init__(self, title: str, steps: int, done: int, shown: bool) -> None:
        console = Console(stderr=True, highlight=False)
        self.lines = console if shown and not console.is_terminal else None
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[numbers]}"))
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False))
        self.bar = Progress(*columns, *times, console=console, disable=not shown or self.lines is not None)
        self.title = title
        self.task = self.bar.add_task(title, total=steps, completed=done, numbers="")
        self.steps, self.looked = done, time.perf_counter()
        self.total, self.first, self.started, self.early = steps, done + 1, self.looked, self.lines is not None
        self.rated_from = self.looked
        self.n_images, self.printed = 0, float("-inf")

    def __enter__(self) -> "RunProgress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def step(self, n_images: int) -> bool:
        """Count a step of ``n_images``; True if it is time to ``show``."""
        self.steps += 1
        self.n_images += n_images
        if self.early and self.steps == self.first:  # which waits for processes and caches, as no further one does
            self.rated_from = time.perf_counter()
            return False
        if self.early and time.perf_counter() - self.started > EARLY_SECONDS:
            return True
        return not self.bar.disable and time.perf_counter() - self.looked > SECONDS

    def show(self, loss: float, accuracy: float | None) -> None:
        """Bring the bar up to date."""
        now = time.perf_counter()
        rate = self.n_images / (now - self.looked)
        self.n_images, self.looked = 0, now
        if self.lines is not None:
            self._show_early(loss, accuracy, rate)
            return
        right = "" if accuracy is None else f"  accuracy {100 * accuracy:.1f} %"
        numbers = f"loss {loss:.3f}{right}  {rate:,.0f} images/s"
        self.bar.update(self.task, completed=self.steps, numbers=numbers)

    def _show_early(self, loss: float, accuracy: float | None, rate: float) -> None:
        """Print one line before the end of the first epoch, with the time that is left at this rate."""
        assert self.lines is not None
        self.early = False
        seconds = (time.perf_counter() - self.rated_from) / (self.steps - self.first) * (self.total - self.steps)
        self.lines.print(
            f"{self.title}: step {self.steps}/{self.total}, loss {loss:.4f}{_accuracy(accuracy)},"
            f" {rate:,.0f} images/s, about {timedelta(seconds=round(seconds))} left",
            markup=False,
            soft_wrap=True,
        )

    def epoch(self, row: dict[str, Any], epochs: int) -> None:
        """Print a line at the end of an epoch, where there is no bar, but not of each if they are very short."""
        now, number = time.perf_counter(), row["epoch"] + 1
        if self.lines is None or (number < epochs and now - self.printed < EPOCH_LINE_SECONDS):
            return
        self.early, self.printed = False, now
        metrics = {
            "validation_ap": "AP",
            "validation_auroc": "AUROC",
            "validation_balanced_accuracy": "balanced accuracy",
        }
        key = next((key for key in metrics if row.get(key) is not None), "")
        validation = f", validation {metrics[key]} {100 * row[key]:.2f} %" if key else ""
        self.lines.print(
            f"{self.title}: epoch {number}/{epochs}, loss {row['train_loss']:.4f}"
            f"{_accuracy(row.get('train_accuracy'))}{validation}, {row['seconds']:.1f} s",
            markup=False,
            soft_wrap=True,
        )


def _accuracy(accuracy: float | None) -> str:
    return "" if accuracy is None else f", accuracy {100 * accuracy:.2f} %"
