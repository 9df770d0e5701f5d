"""Promise: jobs of submitit give the records of this machine, and report why a job failed."""

import sys
from dataclasses import replace

import pytest
import torch

from cyclofocal.lab.compare.grid import ONE_CORE, JobError, Resources, finished, grid
from cyclofocal.lab.compare.slurm import _Call, build_executor, run_slurm
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.train import train
from evidence import untimed

RECIPE = replace(digits(), epochs=2, warmup_epochs=1)
PARAMETERS = {"partition": "gpu", "time": "90", "array_parallelism": "4", "mem_gb": "8"}


def test_jobs_on_this_machine_give_its_records(tmp_path):
    pytest.importorskip("submitit")
    recipes = [RECIPE, replace(RECIPE, name="wild", learning_rate=1e30)]
    jobs = grid(recipes, [CROSS_ENTROPY], range(1), tmp_path / "runs")
    outcomes = run_slurm(jobs, tmp_path / "logs", ONE_CORE, PARAMETERS, cluster="local", poll_seconds=0.1)
    outcomes = {job.recipe.name: outcome for job, outcome in outcomes}

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = train(Job(RECIPE, CROSS_ENTROPY, 0, options=RunOptions(cpu=True)))
    torch.set_num_threads(threads)
    record = outcomes["digits"]
    assert untimed(record) == untimed(alone)
    assert finished(jobs)[0][jobs[0]] == record

    assert isinstance(outcomes["wild"], JobError)
    assert str(outcomes["wild"]).startswith("wild, cross-entropy, seed 0: FloatingPointError: ")
    assert str(tmp_path / "logs") in str(outcomes["wild"])
    assert "\n" not in str(outcomes["wild"])


def test_options_reach_slurm(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))  # as if sbatch were here
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    executor = build_executor(tmp_path, Resources(cpus=3, gpus=0.25), PARAMETERS)
    script = executor._executor._make_submission_file_text("run", "1")
    for line in ("--partition=gpu", "--time=90", "--cpus-per-task=3", "--gpus-per-node=1", "--mem=8GB"):
        assert f"#SBATCH {line}\n" in script


def test_a_job_that_is_stopped_is_queued_again(tmp_path):
    submitit = pytest.importorskip("submitit")
    (job,) = grid([RECIPE], [CROSS_ENTROPY], range(1), tmp_path)
    again = _Call(ONE_CORE).checkpoint(job)
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.result() == finished([job])[0][job]


def test_an_unknown_option_is_refused(tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(ValueError, match="--slurm partitoin: Unknown argument 'partitoin'"):
        build_executor(tmp_path, ONE_CORE, {"partitoin": "gpu"}, "local")


def test_without_submitit_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install '\.\[slurm\]'"):
        build_executor(tmp_path, ONE_CORE, {})
