"""The cells on this machine, in parallel processes."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

from cyclofocal.lab.compare.grid import ONE_CORE, Cell, CellError, Outcome, Share, failure, run_cell

GPU_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Of Nvidia, of Windows' Linux, of AMD."""

AGAIN = "spawn"
"""How a process is started in place of a killed one."""


def run_local(
    cells: Sequence[Cell], workers: int, share: Share = ONE_CORE, devices: Sequence[str] = ()
) -> Generator[tuple[Cell, Outcome], None, None]:
    """Run the cells in ``workers`` processes; every record is on disk before it is yielded.

    The number of workers changes the time and nothing else. A cell whose process is killed is run once more, and one
    that another comparison is running is put off. Closing the iterator stops the runs; a long one goes on from its
    last checkpoint.

    Args:
        cells: of the grid.
        workers: at least 1.
        share: of each run.
        devices: identifiers for ``CUDA_VISIBLE_DEVICES``, given to the workers in turn; none: all see what is there.
    """
    method = _start_method(share)  # the processes start here and not at the first cell, where a display has its thread
    lanes = [Lane(share, _device(devices, number), method) for number in range(min(workers, len(cells)))]
    return _outcomes(cells, lanes)


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


class KilledError(CellError):
    """The process of a run was killed."""


class Lane:
    """A process that runs one cell after the other; another one takes its place if it is killed."""

    def __init__(self, share: Share, device: str | None, method: str) -> None:
        self.share, self.device = share, device
        self.cell: Cell | None = None
        self._start(method)

    def run(self, cell: Cell, wait: bool) -> None:
        """Begin with a cell."""
        self.cell = cell
        self.connection.send((cell, wait))

    def outcome(self) -> tuple[Cell, Outcome | None]:
        """Of the cell that has ended; None of one that another comparison runs."""
        cell, self.cell = self.cell, None
        assert cell is not None
        try:
            return cell, self.connection.recv()
        except (EOFError, ConnectionError):
            self.stop()
            self._start(AGAIN)
            return cell, KilledError(f"{cell.title}: its process was killed, twice (out of memory?)")

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self.process.terminate()
        self.process.join()
        self.connection.close()

    def _start(self, method: str) -> None:
        context = multiprocessing.get_context(method)
        self.connection, theirs = context.Pipe()
        arguments = (theirs, self.share, self.device)
        self.process = context.Process(target=_work, args=arguments, daemon=True)  # type: ignore[attr-defined]
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe


def _outcomes(cells: Sequence[Cell], lanes: Sequence[Lane]) -> Generator[tuple[Cell, Outcome], None, None]:
    waiting = deque(cells)
    put_off, killed = set[Cell](), set[Cell]()
    try:
        while waiting or any(lane.cell for lane in lanes):
            for lane in lanes:
                if waiting and lane.cell is None:
                    cell = waiting.popleft()
                    lane.run(cell, cell in put_off)
            for lane in _ready(lanes):
                cell, outcome = lane.outcome()
                if outcome is None:
                    put_off.add(cell)
                    waiting.append(cell)
                elif isinstance(outcome, KilledError) and cell not in killed:
                    killed.add(cell)
                    waiting.append(cell)
                else:
                    yield cell, outcome
    finally:
        for lane in lanes:
            lane.stop()


def _ready(lanes: Sequence[Lane]) -> list[Lane]:
    """Those whose cell has ended, once there is one."""
    ready = wait([lane.connection for lane in lanes if lane.cell])
    return [lane for lane in lanes if lane.connection in ready]


def _start_method(share: Share) -> str:
    """Forked processes have torch at once, which takes seconds; a process with threads or a GPU must not be forked."""
    alone = sys.platform == "linux" and threading.active_count() == 1
    return "fork" if alone and share == ONE_CORE else "spawn"


def _device(devices: Sequence[str], lane: int) -> str | None:
    return devices[lane % len(devices)] if devices else None


def _work(connection: Connection, share: Share, device: str | None) -> None:
    """The life of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    while True:
        cell, wait = connection.recv()
        try:
            outcome: Outcome | None = run_cell(cell, share, wait)
        except Exception as error:
            outcome = failure(cell, error)
        connection.send(outcome)


def _end_with_parent() -> None:
    """A process would wait for ever if the parent is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
