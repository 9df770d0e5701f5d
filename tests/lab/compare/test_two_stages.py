"""Promise: an experiment in two stages is a job like any other: lock_run, checked, resumed, and run once."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cyclofocal.lab import cli
from cyclofocal.lab.compare import grid as grid_module
from cyclofocal.lab.compare.grid import ONE_CORE, finished, grid, run_job
from cyclofocal.lab.compare.local import run_local
from cyclofocal.lab.data.dataset import DataSet
from cyclofocal.lab.oltr import recipes
from cyclofocal.lab.oltr.recipes import cyclical, losses
from cyclofocal.lab.oltr.stage_recipe import TwoStages
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY, CYCLICAL, SMOOTHED
from cyclofocal.lab.records import read_records
from cyclofocal.lab.training import checkpoint
from cyclofocal.lab.training import loop as training
from cyclofocal.lab.training import run_folder as runs
from cyclofocal.lab.training.train import load_data
from evidence import untimed
from stages import FIRST

SECOND = replace(
    FIRST, name="digits-2", title="digits, stage 2", stage=2, features_lr_scale=0.1, centroids_lr_scale=2.0
)
STAGES = TwoStages(FIRST, SECOND, losses(cyclical(0.0, 4.0), cyclical(0.0, 4.0)))

SCRIPT = """
import os, signal, sys
sys.path += {paths!r}
import torch
import test_two_stages as tests
left = {steps}
def counted(*args, **kwargs):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

real = torch.optim.SGD.step
torch.optim.SGD.step = counted
torch.set_num_threads(1)
tests.recipes.TWO_STAGES["fashion-mnist-open"] = lambda: tests.STAGES
sys.argv = {command!r}
tests.cli.main()
"""

posix = pytest.mark.skipif(os.name != "posix", reason="SIGKILL")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Record and checkpoints of both stages, by name, of a run that was not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    run_job(*grid([STAGES], [CYCLICAL], [0], folder, grid_module.RunOptions(cpu=True)))
    return contents(folder)


def start(folder, *command, steps=0):
    """Run the command in a process that is killed after a number of optimizer steps."""
    command = ["cyclofocal", *command[:1], "fashion-mnist-open", *command[1:], "--out", str(folder)]
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    code = SCRIPT.format(paths=paths, steps=steps, command=command)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], **pipes)


def reproduce(folder, steps=0):
    return start(folder, "reproduce", "--loss", "cyclical", "--cpu", steps=steps)


def records(folder):
    found = [record for path in folder.glob("digits-*/*/record.jsonl") for record in read_records(path)]
    return {(record.recipe["stage"], record.loss["name"], record.seed): record for record in found}


def numbers(record):
    """All of a record but its times, its command and the margin, which a comparison alone declares."""
    return replace(untimed(record), command="", margin=None)


def contents(folder):
    """Numbers and final weights of the only run of each stage."""
    (one,), (two,) = (list((folder / f"digits-{stage}").iterdir()) for stage in (1, 2))
    weights = [checkpoint.load_latest(path)[0]["model"] for path in (one, two)]
    return {key: numbers(record) for key, record in records(folder).items()}, weights


def assert_same(found, expected):
    assert found[0] == expected[0]
    for ours, theirs in zip(found[1], expected[1], strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@posix
@pytest.mark.parametrize("steps", [9, 12 + 3, 12 + 9], ids=["stage 1", "stage 2, first epoch", "stage 2"])
def test_a_killed_run_resumes_to_the_same_bits(steps, tmp_path, whole):
    killed = reproduce(tmp_path, steps)
    _, err = killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL, err
    assert len(records(tmp_path)) == (0 if steps < 12 else 1)
    again = reproduce(tmp_path)
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert "digits-1 cyclical seed 0: epoch 1/2" not in err  # it was stored
    assert_same(contents(tmp_path), whole)


@pytest.mark.parametrize("second", ["reproduce", "compare"])
def test_two_commands_on_one_folder_run_each_stage_once(second, tmp_path, whole):
    commands = {
        "reproduce": ("reproduce", "--loss", "ce,cyclical", "--seeds", "1", "--cpu"),
        "compare": ("compare", "--losses", "ce,cyclical", "--seeds", "1", "--workers", "1"),
    }
    both = [start(tmp_path, *commands[name]) for name in ("reproduce", second)]
    said = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    epochs = sum(err.count(": epoch ") for _, err in said)
    if second == "reproduce":  # compare has no line of an epoch
        assert epochs == 2 * 2 * 2
    assert len(records(tmp_path)) == 4
    assert all(len(path.read_text().splitlines()) == 2 for path in tmp_path.glob("digits-*/*/epochs.jsonl"))
    assert numbers(records(tmp_path)[2, "cyclical", 0]) == whole[0][2, "cyclical", 0]


def test_compare_matches_reproduce_and_reuses_its_runs(tmp_path, monkeypatch, capsys, whole):
    monkeypatch.setitem(recipes.TWO_STAGES, "fashion-mnist-open", lambda: STAGES)
    command = ["fashion-mnist-open", "--losses", "cyclical,ce", "--seeds", "1", "--out", str(tmp_path)]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["cyclofocal", "compare", *command, "--workers", "1"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
    said = capsys.readouterr()
    assert "digits, stage 2" in said.out
    assert "2 runs, 2 of them finished before" in said.err
    found = records(tmp_path)
    assert {key: numbers(found[key]) for key in whole[0]} == whole[0]
    kept = {path.parent.parent.name for path in tmp_path.rglob("checkpoint-*.pt")}
    assert kept == {"digits-1"}  # which stage 2 begins with, and no other


def test_stage_1_is_trained_first_and_reused(tmp_path, monkeypatch):
    (job,) = grid([STAGES], [CYCLICAL], [0], tmp_path)
    begun, real = [], training.fit
    monkeypatch.setattr(training, "fit", lambda run: begun.append(run.job.recipe.stage) or real(run))
    record = run_job(job, ONE_CORE)
    assert begun == [1, 2]
    assert [path.name for path in checkpoint.checkpoints(job.stage1.folder)] == ["checkpoint-00001.pt"]
    assert not checkpoint.checkpoints(job.folder)
    assert finished([job]) == ({job: record}, [])
    (other,) = grid([replace(STAGES, second=replace(SECOND, epochs=1))], [CYCLICAL], [0], tmp_path)
    assert other.stage1 == job.stage1
    run_job(other, ONE_CORE)
    assert begun == [1, 2, 2]


def test_a_long_run_honours_the_interval_between_checkpoints(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    saved, real, keep = [], checkpoint.save_checkpoint, runs.RunFolder.save_epoch

    def tick(self, epoch, content):
        now[0] += 20
        keep(self, epoch, content)

    monkeypatch.setattr(runs.RunFolder, "save_epoch", tick)
    monkeypatch.setattr(
        checkpoint,
        "save_checkpoint",
        lambda folder, epoch, content: saved.append(epoch) or real(folder, epoch, content),
    )
    longer = TwoStages(replace(FIRST, epochs=5), replace(SECOND, epochs=3), STAGES.losses)
    run_job(*grid([longer], [CROSS_ENTROPY], [0], tmp_path))
    assert saved == [1, 3, 4, 1]  # every 30 seconds, and the last of stage 1


def test_other_processes_leave_a_locked_stage_alone(tmp_path):
    (job,) = grid([STAGES], [CYCLICAL], [0], tmp_path)
    with runs.lock_run(job.folder) as held:
        assert held
        assert run_job(job, ONE_CORE, wait=False) is None
    assert not (job.folder / "run.json").exists()


@pytest.mark.parametrize("stage", [1, 2])
def test_a_class_without_a_test_image_is_refused_before_training(stage, tmp_path, monkeypatch):
    (job,) = grid([STAGES], [CROSS_ENTROPY], [0], tmp_path)
    if stage == 2:
        run_job(job.stage1)
    real = load_data

    def lacking(recipe, root, seed):
        data = real(recipe, root, seed)
        left = np.flatnonzero(data.test.labels != 3)
        return DataSet(data.title, data.classes, data.train, data.validation, data.test.select(left))

    monkeypatch.setattr("cyclofocal.lab.oltr.stages.load_data", lacking)
    monkeypatch.setattr(training, "fit", None)
    with pytest.raises(ValueError, match=r"1 of 8 classes have no test image, so their accuracy is undefined: 3 \(3\)"):
        run_job(job)


def test_a_loss_without_a_pair_is_that_of_both_stages(tmp_path):
    (job,) = grid([STAGES], [SMOOTHED], [0], tmp_path)
    assert job.loss == job.stage1.loss == SMOOTHED
    (job,) = grid([STAGES], [CYCLICAL], [0], tmp_path)
    assert job.loss == job.stage1.loss == cyclical(0.0, 4.0)


def test_a_failed_stage_1_fails_its_job_and_no_other(tmp_path):
    wild = TwoStages(replace(FIRST, learning_rate=1e30, name="wild-1"), replace(SECOND, name="wild-2"), STAGES.losses)
    jobs = grid([wild, STAGES], [CROSS_ENTROPY], [0], tmp_path)
    outcomes = {job.recipe.name: outcome for job, outcome in run_local(jobs, workers=1)}
    assert "the training loss is" in str(outcomes["wild-2"])
    assert outcomes["digits-2"].metrics
