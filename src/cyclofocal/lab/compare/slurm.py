"""Run jobs as an array of Slurm jobs, by submitit."""

import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from cyclofocal.lab.compare.grid import ONE_CORE, BackendError, Job, JobError, Outcome, Resources, finished, run_job
from cyclofocal.lab.records import RunRecord

ARRAY = 1000
"""Jobs of one array; Slurm refuses more than its MaxArraySize, 1001 unless configured."""

MINUTES = 60
"""Time limit of a Slurm job; submitit's default is 5. A longer one is queued again, at most three times."""

SLURM_COMMON = ("timeout_min", "mem_gb", "name", "nodes", "tasks_per_node", "stderr_to_stdout")
"""Names of submitit for any cluster; all others are Slurm's."""


def run_slurm(
    jobs: Sequence[Job],
    logs: Path,
    resources: Resources = ONE_CORE,
    parameters: Mapping[str, str] | None = None,
    cluster: str = "slurm",
    poll_seconds: float = 10.0,
) -> Generator[tuple[Job, Outcome], None, None]:
    """Run the jobs by Slurm; the nodes must see the folders of the jobs and of the data.

    Closing the iterator cancels the jobs that have not ended. If this process is killed they continue, and the same
    comparison, started again, waits for them.

    Args:
        jobs: of the grid.
        logs: folder for what submitit and the jobs write; it must be shared as well.
        resources: of each run.
        parameters: for submitit, such as ``{"partition": "gpu", "time": "60"}``.
        cluster: for submitit: "slurm", or "local" or "debug" on this machine.
        poll_seconds: between two looks at the jobs.

    Raises:
        ModuleNotFoundError: submitit is not installed.
        ValueError: a parameter that it does not know.
        BackendError: Slurm refuses the jobs.
        RuntimeError: there is no Slurm on this machine.
    """
    if not jobs:
        return
    executor = build_executor(logs, resources, parameters or {}, cluster)
    from submitit.core.utils import FailedJobError
    from submitit.helpers import as_completed

    submitted = []
    try:
        for first in range(0, len(jobs), ARRAY):
            submitted += executor.map_array(_Call(resources), jobs[first : first + ARRAY])
    except (OSError, FailedJobError) as error:
        raise BackendError(f"Slurm does not take the jobs: {' '.join(str(error).split())}") from error
    job_of = dict(zip(map(id, submitted), jobs, strict=True))
    try:
        for call in as_completed(submitted, poll_frequency=poll_seconds):
            job = job_of[id(call)]
            yield job, _outcome(call, job)
    finally:
        for call in submitted:
            if not call.done():
                call.cancel()


@dataclass(frozen=True)
class _Call:
    resources: Resources

    def __call__(self, job: Job) -> RunRecord | None:
        return run_job(job, self.resources)

    def checkpoint(self, job: Job) -> Any:
        """Queue the job again when it is preempted or near its time limit; it resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def build_executor(logs: Path, resources: Resources, parameters: Mapping[str, str], cluster: str = "slurm") -> Any:
    """submitit's executor with these parameters."""
    try:
        import submitit
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--on slurm needs submitit. From a clone: pip install '.[slurm]'") from None
    executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
    named = {name if name in SLURM_COMMON else f"slurm_{name}": _number(value) for name, value in parameters.items()}
    own = {
        "name": "cyclofocal",
        "cpus_per_task": resources.cpus,
        "gpus_per_node": ceil(resources.gpus),
        "timeout_min": MINUTES,
    }
    try:
        executor.update_parameters(**own | named)
    except (NameError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"--slurm {', '.join(parameters)}: {error}") from None
    return executor


def _outcome(call: Any, job: Job) -> Outcome:
    """The record lies in the job's folder; the error of its process explains a missing one."""
    records, _ = finished([job])
    if job in records:
        return records[job]
    try:
        error = call.exception()
    except Exception as unfinished:  # submitit's UncompletedJobError: killed, or out of time once too often
        error = unfinished
    cause = re.findall(r"^(?:\w+\.)*(\w+(?:Error|Exception)\b.*)", str(error), re.MULTILINE)
    return JobError(f"{job.title}: {cause[-1] if cause else type(error).__name__}; see {call.paths.stderr}")


def _number(value: str) -> int | str:
    return int(value) if value.lstrip("-").isdigit() else value
