"""Promise: commands print what will be trained first, and no large network starts unasked on a CPU."""

import sys
from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

from cyclofocal.lab.commands import app, plan
from cyclofocal.lab.commands.plan import confirm_cpu, plan_lines, time_left
from cyclofocal.lab.compare.grid import grid
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.image_folder import image_recipe
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY, FOCAL
from cyclofocal.lab.recipes.tabular import keel_recipe


def jobs(tmp_path, *recipes, seeds=2):
    return grid(recipes, [CROSS_ENTROPY, FOCAL], range(seeds), tmp_path)


def test_a_plan_names_data_model_losses_and_seeds(tmp_path):
    assert plan_lines(jobs(tmp_path, digits(), replace(image_recipe("flowers"), epochs=1), seeds=1)) == [
        "handwritten digits, long-tailed 50:1: small-convnet, 8 x 8 pixels, 40 epochs",
        "flowers: resnet18, 224 x 224 pixels, 1 epoch",
        "2 losses (cross-entropy, focal), 1 seed",
    ]
    table = keel_recipe("wdbc")
    first, sides = plan_lines(jobs(tmp_path, table))
    stopping = f"or until {table.early_stopping} epochs bring no smaller validation loss"
    assert first == f"{table.title}: mlp, {table.epochs} epochs, {stopping}"
    assert sides.endswith("2 seeds, 5 folds each")
    many = plan_lines(jobs(tmp_path, *(replace(digits(), name=f"d{n}", title=f"data {n}") for n in range(9))))
    assert many[0] == "9 experiments, from data 0 to data 8"


def test_the_time_left_is_that_of_the_first_runs():
    assert time_left([60.0, 120.0], 40) == "about 1:00:00 for 40 runs more"
    assert time_left([60.0], 0) == time_left([], 5) == ""


@pytest.fixture
def terminal(monkeypatch):
    """Answer the question of a terminal."""

    def make(reply):
        asked = []
        monkeypatch.setattr(plan, "_without_accelerator", lambda: True)
        for stream in (sys.stdin, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: reply is not None, raising=False)
        monkeypatch.setattr(typer, "confirm", lambda text, **_: asked.append(text) or _answered(reply))
        return asked

    return make


def _answered(reply):
    if not reply:
        raise typer.Abort


def test_a_large_network_on_the_cpu_is_asked_about(tmp_path, terminal):
    large = jobs(tmp_path, image_recipe("flowers"))
    asked = terminal(reply=True)
    confirm_cpu(large, yes=False, cpu=False)
    assert asked == ["Train on the CPU?"]
    terminal(reply=False)
    with pytest.raises(typer.Abort):
        confirm_cpu(large, yes=False, cpu=False)


def test_without_a_terminal_it_is_an_error_and_never_waits(tmp_path, terminal):
    terminal(reply=None)
    with pytest.raises(
        typer.BadParameter, match=r"resnet18 with 224 x 224 pixels is slow on a CPU; give --yes to train"
    ):
        confirm_cpu(jobs(tmp_path, image_recipe("flowers")), yes=False, cpu=False)


@pytest.mark.parametrize(
    "change",
    [{"image_size": 127}, {"model": "small-convnet"}, {"model": "resnet-10"}],
)
def test_nothing_is_asked_where_it_is_fast_or_agreed(tmp_path, terminal, monkeypatch, change):
    asked = terminal(reply=False)
    large = image_recipe("flowers")
    confirm_cpu(jobs(tmp_path, replace(large, **change)), yes=False, cpu=True)
    confirm_cpu(jobs(tmp_path, large), yes=True, cpu=True)
    confirm_cpu([], yes=False, cpu=True)
    monkeypatch.setattr(plan, "_without_accelerator", lambda: False)
    confirm_cpu(jobs(tmp_path, large), yes=False, cpu=False)
    assert not asked


def test_the_version_is_printed():
    from importlib.metadata import version

    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, version("cyclofocal") + "\n")


@pytest.mark.parametrize("command", ["compare", "train", "reproduce"])
def test_options_have_one_name_in_every_command(command):
    help_text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
    for option in ("--losses", "--loss", "--epochs", "--seed", "--yes", "--set", "--out"):
        assert option in help_text
    assert ("--data-workers" in help_text) == (command != "compare")
