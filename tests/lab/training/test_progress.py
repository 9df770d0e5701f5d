"""A run says how far it is: a bar on a terminal, a line per epoch elsewhere, nothing where it was not asked to."""

import io

import pytest
from rich.console import Console

from cyclofocal.lab.training import progress
from cyclofocal.lab.training.progress import RunProgress

ROW = {"epoch": 1, "train_loss": 0.25, "train_accuracy": 0.9, "validation_balanced_accuracy": 0.875, "seconds": 2.0}


@pytest.fixture
def screen(monkeypatch):
    """What is shown, on a terminal or not."""

    def make(terminal):
        said = io.StringIO()
        monkeypatch.setattr(progress, "SECONDS", -1.0)
        monkeypatch.setattr(
            progress, "Console", lambda **_: Console(file=said, force_terminal=terminal, width=160, highlight=False)
        )
        return said

    return make


def test_bar_shows_loss_accuracy_speed_and_time_left(screen):
    said = screen(terminal=True)
    with RunProgress("digits ce seed 0", steps=10, done=4, shown=True) as bar:
        assert bar.step(32)
        bar.show(0.5, 0.75)
        bar.epoch(ROW, 5)
    for words in ("digits ce seed 0", "loss 0.500", "accuracy 75.0 %", "images/s", "left"):
        assert words in said.getvalue()
    assert bar.bar.tasks[0].completed == 5
    assert "epoch" not in said.getvalue()


def test_elsewhere_there_is_a_line_per_epoch_or_second(screen):
    said = screen(terminal=False)
    with RunProgress("digits ce seed 0", steps=10, done=0, shown=True) as bar:
        assert not bar.step(32)
        bar.epoch(ROW | {"validation_auroc": 0.95}, 5)
        bar.epoch(ROW | {"epoch": 2}, 5)  # less than a second later
        bar.epoch(ROW | {"epoch": 4}, 5)
    assert said.getvalue() == (
        "digits ce seed 0: epoch 2/5, loss 0.2500, accuracy 90.00 %, validation AUROC 95.00 %, 2.0 s\n"
        "digits ce seed 0: epoch 5/5, loss 0.2500, accuracy 90.00 %, validation balanced accuracy 87.50 %, 2.0 s\n"
    )


def test_elsewhere_a_long_epoch_has_an_early_line_once(screen, monkeypatch):
    said = screen(terminal=False)
    now = iter([0.0, 9.0, 20.0, 20.0, 20.0, 30.0, 40.0])  # the first step waits for the processes
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(now))
    with RunProgress("digits ce seed 0", steps=100, done=0, shown=True) as bar:
        assert not bar.step(32)
        assert bar.step(32)
        bar.show(0.5, 0.75)
        assert not bar.step(32)
    assert said.getvalue() == (
        "digits ce seed 0: step 2/100, loss 0.5000, accuracy 75.00 %, 3 images/s, about 0:17:58 left\n"
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_a_process_that_is_not_asked_says_nothing(screen, terminal):
    said = screen(terminal)
    with RunProgress("digits ce seed 0", steps=10, done=0, shown=False) as bar:
        assert not bar.step(32)
        bar.epoch(ROW, 5)
    assert said.getvalue() == ""
