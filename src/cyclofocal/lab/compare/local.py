"""Run jobs on this machine, in parallel processes."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

from cyclofocal.lab.compare.grid import ONE_CORE, Job, JobError, Outcome, Resources, failure, run_job

GPU_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Device files of Nvidia, of the Windows Subsystem for Linux, and of AMD."""

RESTART_METHOD = "spawn"
"""Start method of a process that replaces a killed one."""


def run_local(
    jobs: Sequence[Job], workers: int, resources: Resources = ONE_CORE, devices: Sequence[str] = ()
) -> Generator[tuple[Job, Outcome], None, None]:
    """Run the jobs in ``workers`` processes; every record is on disk before it is yielded.

    The number of workers changes the time and nothing else. A job whose process is killed is run once more, and one
    already running elsewhere is deferred. Closing the iterator stops the runs; a long one resumes from its
    last checkpoint.

    Args:
        jobs: of the grid.
        workers: at least 1.
        resources: of each run.
        devices: identifiers for ``CUDA_VISIBLE_DEVICES``, given to the workers in turn; none: all see what is there.
    """
    method = _start_method(resources)
    # The processes start here and not at the first job, where a display has its thread.
    processes = [WorkerProcess(resources, _device(devices, n), method) for n in range(min(workers, len(jobs)))]
    return _outcomes(jobs, processes)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """Identifiers of the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` has them."""
    if not any(Path(device).exists() for device in GPU_FILES):
        return []
    import torch

    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return (named.split(",") if named else list(map(str, range(count))))[:count]


class KilledError(JobError):
    """A run whose process was killed."""


class WorkerProcess:
    """A process that runs one job after the other, and is replaced if it is killed."""

    def __init__(self, resources: Resources, device: str | None, method: str) -> None:
        self.resources, self.device = resources, device
        self.job: Job | None = None
        self._start(method)

    def run(self, job: Job, wait: bool) -> None:
        """Start a job."""
        self.job = job
        self.connection.send((job, wait))

    def outcome(self) -> tuple[Job, Outcome | None]:
        """The finished job and its outcome; None for a job that another comparison runs."""
        job, self.job = self.job, None
        assert job is not None
        try:
            return job, self.connection.recv()
        except (EOFError, ConnectionError):
            self.stop()
            self._start(RESTART_METHOD)
            return job, KilledError(f"{job.title}: its process was killed, twice (out of memory?)")

    def stop(self) -> None:
        """Terminate the process."""
        self.process.terminate()
        self.process.join()
        self.connection.close()

    def _start(self, method: str) -> None:
        context = multiprocessing.get_context(method)
        self.connection, theirs = context.Pipe()
        arguments = (theirs, self.resources, self.device)
        self.process = context.Process(target=_work, args=arguments, daemon=True)  # type: ignore[attr-defined]
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe


def _outcomes(jobs: Sequence[Job], processes: Sequence[WorkerProcess]) -> Generator[tuple[Job, Outcome], None, None]:
    waiting = deque(jobs)
    deferred, killed = set[Job](), set[Job]()
    try:
        while waiting or any(worker.job for worker in processes):
            for worker in processes:
                if waiting and worker.job is None:
                    job = waiting.popleft()
                    worker.run(job, job in deferred)
            for worker in _ready(processes):
                job, outcome = worker.outcome()
                if outcome is None:
                    deferred.add(job)
                    waiting.append(job)
                elif isinstance(outcome, KilledError) and job not in killed:
                    killed.add(job)
                    waiting.append(job)
                else:
                    yield job, outcome
    finally:
        for worker in processes:
            worker.stop()


def _ready(processes: Sequence[WorkerProcess]) -> list[WorkerProcess]:
    """Wait for a job to end; the processes whose job has."""
    ready = wait([worker.connection for worker in processes if worker.job])
    return [worker for worker in processes if worker.connection in ready]


def _start_method(resources: Resources) -> str:
    """Forked processes have torch at once, which takes seconds; a process with threads or a GPU must not be forked."""
    alone = sys.platform == "linux" and threading.active_count() == 1
    return "fork" if alone and resources == ONE_CORE else "spawn"


def _device(devices: Sequence[str], worker: int) -> str | None:
    return devices[worker % len(devices)] if devices else None


def _work(connection: Connection, resources: Resources, device: str | None) -> None:
    """Worker main loop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    while True:
        job, wait = connection.recv()
        try:
            outcome: Outcome | None = run_job(job, resources, wait)
        except Exception as error:
            outcome = failure(job, error)
        connection.send(outcome)


def _end_with_parent() -> None:
    """Exit when the parent is killed, instead of waiting forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
