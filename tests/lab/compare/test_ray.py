"""Promise: a Ray cluster gives the records of this machine, and survives the loss of a process."""

import os
import signal
import sys
from dataclasses import replace

import pytest

from cyclofocal.lab.compare import ray as backend
from cyclofocal.lab.compare.grid import BackendError, JobError, Resources, finished, grid, run_job
from cyclofocal.lab.compare.local import run_local
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY, CYCLICAL
from evidence import untimed

RECIPE = replace(digits(), epochs=2, warmup_epochs=1)


@pytest.fixture(scope="module")
def cluster():
    """Two CPUs of this machine, for all tests, as it takes seconds to start."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


def test_the_records_are_those_of_this_machine(cluster, tmp_path):
    def outcomes(folder, run):
        jobs = grid([RECIPE], [CROSS_ENTROPY, CYCLICAL], range(2), tmp_path / folder)
        records = dict(run(jobs))
        assert finished(jobs)[0] == records
        return {(job.loss, job.seed): untimed(record) for job, record in records.items()}

    ours = outcomes("here", lambda jobs: run_local(jobs, workers=1))
    assert len(ours) == 4
    assert outcomes("there", backend.run_ray) == ours
    assert cluster.is_initialized()  # it was there before


def test_lost_process_is_retried_failed_run_reported(cluster, tmp_path, monkeypatch):
    attempts = tmp_path / "attempts"

    def deadly(job, resources, folder):  # nested, so that Ray sends it along
        with attempts.open("a") as file:
            file.write("x")
        if attempts.read_text() == "x":
            os.kill(os.getpid(), signal.SIGKILL)
        return run_job(job, resources)

    monkeypatch.setattr(backend, "_run", deadly)
    jobs = grid([RECIPE], [CROSS_ENTROPY], range(1), tmp_path)
    outcomes = dict(backend.run_ray(jobs, Resources(cpus=2)))  # one at a time
    assert outcomes == finished(jobs)[0]
    assert attempts.read_text() == "xx"

    jobs = grid([replace(RECIPE, learning_rate=1e30)], [CROSS_ENTROPY], range(1), tmp_path)
    ((_, outcome),) = backend.run_ray(jobs)
    assert isinstance(outcome, JobError)
    assert str(outcome).startswith("digits, cross-entropy, seed 0: FloatingPointError: ")
    assert attempts.read_text() == "xxx"  # not tried again


def test_record_of_a_node_without_shared_files_is_stored(cluster, tmp_path, monkeypatch):
    def elsewhere(job, resources, folder):
        return run_job(replace(job, folder=tmp_path / "node" / job.folder.name), resources)

    monkeypatch.setattr(backend, "_run", elsewhere)
    jobs = grid([RECIPE], [CROSS_ENTROPY], range(1), tmp_path / "here")
    records = dict(backend.run_ray(jobs))
    assert finished(jobs)[0] == records


def test_without_ray_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install '\.\[ray\]'"):
        next(backend.run_ray(grid([RECIPE], [CROSS_ENTROPY], range(1), tmp_path)))


def test_unreachable_cluster_is_reported(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")

    def refuse(**options):
        raise ConnectionError("no cluster\nat 192.0.2.1:6379")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(BackendError, match=r"cannot be reached: no cluster at 192.0.2.1:6379$"):
        next(backend.run_ray(grid([RECIPE], [CROSS_ENTROPY], range(1), tmp_path)))
