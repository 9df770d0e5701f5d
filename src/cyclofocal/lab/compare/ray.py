"""Run jobs on a Ray cluster."""

import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from cyclofocal.lab.compare.grid import ONE_CORE, BackendError, Job, Outcome, Resources, failure, run_job
from cyclofocal.lab.records import RunRecord, write_record

RETRIES = 3
"""Retries of a run whose node or process is lost; one that fails by itself is not retried."""


def run_ray(jobs: Sequence[Job], resources: Resources = ONE_CORE) -> Generator[tuple[Job, Outcome], None, None]:
    """Run the jobs as tasks of Ray, as many at a time as the cluster has CPUs and GPUs for.

    The cluster is the one that this process is connected to, else that of ``RAY_ADDRESS``, else one that was started
    on this machine, else a new one on this machine for as long as it takes. Records come back, and are written here
    too where the nodes do not share this file system; stopped runs resume where they do. Every node needs
    cyclofocal installed, and the data where it is here.

    Raises:
        BackendError: the cluster cannot be reached.
        ModuleNotFoundError: Ray is not installed.
    """
    if not jobs:
        return
    ray = load_ray()
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # of many kinds, down to Exception itself
            raise BackendError(f"Ray does not start or cannot be reached: {' '.join(str(error).split())}") from error
    task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=RETRIES)(_run)
    running = {task.remote(job, resources, os.getcwd()): job for job in jobs}
    try:
        while running:
            (reference,), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(reference)
            yield job, _outcome(ray, reference, job)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()


def load_ray() -> Any:
    """Import ray with usage reporting disabled, or explain how to install it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--on ray needs Ray. From a clone: pip install '.[ray]'") from None
    return ray


def _run(job: Job, resources: Resources, folder: str) -> RunRecord | None:
    """Run a job on a node, in a folder of the same path as the command's, which paths are relative to."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    return run_job(job, resources)


def _outcome(ray: Any, reference: Any, job: Job) -> Outcome:
    try:
        record: RunRecord = ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # the run's own error, with the node's traceback
        return failure(job, error.cause)
    except ray.exceptions.RayError as error:
        return failure(job, error)
    if not job.record_path.exists():
        write_record(record, job.record_path)
    return record
