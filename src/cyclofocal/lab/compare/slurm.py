"""The cells as an array of jobs of Slurm, by submitit."""

import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from cyclofocal.lab.compare.grid import ONE_CORE, BackendError, Cell, CellError, Outcome, Share, finished, run_cell
from cyclofocal.lab.records import RunRecord

ARRAY = 1000
"""Jobs of one array; Slurm refuses more than its MaxArraySize, 1001 unless configured."""

MINUTES = 60
"""Of a job; submitit's own default is 5. A job that needs more is queued again, three times at most, and goes on."""

SHARED = ("timeout_min", "mem_gb", "name", "nodes", "tasks_per_node", "stderr_to_stdout")
"""Names of submitit for any cluster; all others are Slurm's."""


def run_slurm(
    cells: Sequence[Cell],
    logs: Path,
    share: Share = ONE_CORE,
    parameters: Mapping[str, str] | None = None,
    cluster: str = "slurm",
    poll_seconds: float = 10.0,
) -> Generator[tuple[Cell, Outcome], None, None]:
    """Run the cells as jobs; the nodes must see the folders of the cells and of the data.

    Closing the iterator cancels the jobs that have not ended. If this process is killed they go on, and the same
    comparison, started again, waits for them.

    Args:
        cells: of the grid.
        logs: folder for what submitit and the jobs write; it must be shared as well.
        share: of each run.
        parameters: for submitit, such as ``{"partition": "gpu", "time": "60"}``.
        cluster: for submitit: "slurm", or "local" or "debug" on this machine.
        poll_seconds: between two looks at the jobs.

    Raises:
        ModuleNotFoundError: submitit is not installed.
        ValueError: a parameter that it does not know.
        BackendError: Slurm refuses the jobs.
        RuntimeError: there is no Slurm on this machine.
    """
    if not cells:
        return
    executor = build_executor(logs, share, parameters or {}, cluster)
    from submitit.core.utils import FailedJobError
    from submitit.helpers import as_completed

    jobs = []
    try:
        for first in range(0, len(cells), ARRAY):
            jobs += executor.map_array(_Job(share), cells[first : first + ARRAY])
    except (OSError, FailedJobError) as error:
        raise BackendError(f"Slurm does not take the jobs: {' '.join(str(error).split())}") from error
    cell_of = dict(zip(map(id, jobs), cells, strict=True))
    try:
        for job in as_completed(jobs, poll_frequency=poll_seconds):
            cell = cell_of[id(job)]
            yield cell, _outcome(job, cell)
    finally:
        for job in jobs:
            if not job.done():
                job.cancel()


@dataclass(frozen=True)
class _Job:
    share: Share

    def __call__(self, cell: Cell) -> RunRecord | None:
        return run_cell(cell, self.share)

    def checkpoint(self, cell: Cell) -> Any:
        """Called when the job is preempted or near its time limit: it is queued again, and goes on."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, cell)


def build_executor(logs: Path, share: Share, parameters: Mapping[str, str], cluster: str = "slurm") -> Any:
    """submitit's executor with these parameters."""
    try:
        import submitit
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--on slurm needs submitit. From a clone: pip install '.[slurm]'") from None
    executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
    named = {name if name in SHARED else f"slurm_{name}": _number(value) for name, value in parameters.items()}
    own = {"name": "cyclofocal", "cpus_per_task": share.cpus, "gpus_per_node": ceil(share.gpus), "timeout_min": MINUTES}
    try:
        executor.update_parameters(**own | named)
    except (NameError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"--slurm {', '.join(parameters)}: {error}") from None
    return executor


def _outcome(job: Any, cell: Cell) -> Outcome:
    """The record lies in the cell's folder; what the job sent back tells why there is none."""
    records, _ = finished([cell])
    if cell in records:
        return records[cell]
    try:
        error = job.exception()
    except Exception as unfinished:  # submitit's UncompletedJobError: killed, or out of time once too often
        error = unfinished
    cause = re.findall(r"^(?:\w+\.)*(\w+(?:Error|Exception)\b.*)", str(error), re.MULTILINE)
    return CellError(f"{cell.title}: {cause[-1] if cause else type(error).__name__}; see {job.paths.stderr}")


def _number(value: str) -> int | str:
    return int(value) if value.lstrip("-").isdigit() else value
