"""Measure time and peak memory of losses, interleaved in one process."""

import contextlib
import ctypes
import gc
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from cyclofocal import kernels
from cyclofocal.lab.bench.candidates import Candidate, Problem, Step, UnfitError
from cyclofocal.lab.bench.layer import LayerProblem

SAMPLE_SECONDS = 0.002
"""Minimum duration of a sample: the call is repeated, so that timer and loop overhead are negligible."""

MIN_ROUNDS = 5
SLOW_FACTOR = 5
"""Ratio to torch's time above which a loss takes part in proportionally fewer rounds."""

LARGE_BYTES, TRIAL_BYTES = 2**28, 2**25
"""Size of logits from which the memory is first measured on a part of them, and size of that part."""

HEAP_GROWTH = 3
"""Growth of a warm heap over the memory in use: a freed aligned block rarely fits the next one of the same size."""

Quantiles = tuple[float, float, float]
"""20 %, 50 % and 80 % quantile."""


@dataclass(frozen=True)
class Case:
    """Shape and dtype of a problem.

    Attributes:
        shape: (N, C, ...) of logits, or (N, D, C) of a last layer.
        dtype: its name in torch.
        is_layer: True for a last layer.
    """

    shape: tuple[int, ...]
    dtype: str
    is_layer: bool = False

    @property
    def title(self) -> str:
        return " x ".join(f"{size:,}" for size in self.shape)

    def problem(self, device: str) -> Problem | LayerProblem:
        """Return normal logits, or layers that make such, and uniform labels, the same at every call."""
        generator, dtype = torch.Generator(device).manual_seed(0), getattr(torch, self.dtype)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            numbers = torch.randn(shape, device=device, generator=generator) * scale
            return numbers.to(dtype).requires_grad_()

        def labels(classes: int, *shape: int) -> Tensor:
            return torch.randint(classes, shape, device=device, generator=generator)

        if self.is_layer:
            rows, features, classes = self.shape
            hidden, weight = normal(rows, features), normal(classes, features, scale=features**-0.5)
            return LayerProblem(hidden, weight, labels(classes, rows))
        return Problem(normal(*self.shape), labels(self.shape[1], self.shape[0], *self.shape[2:]))


@dataclass(frozen=True)
class Result:
    """Measurement of one loss, or the reason why there is none.

    Attributes:
        candidate: the loss.
        rounds: number of rounds in which it took part.
        milliseconds: time of one forward and backward pass.
        ratio: its time divided by that of the first candidate of its family in the same round.
        peak_memory: peak beyond the logits and the target, in units of the logits; includes the gradient.
        skipped: the reason; "" if it was measured.
    """

    candidate: Candidate
    rounds: int = 0
    milliseconds: Quantiles | None = None
    ratio: Quantiles | None = None
    peak_memory: float | None = None
    skipped: str = ""


@dataclass
class _Trial:
    """A prepared loss and its seconds per call, by round."""

    candidate: Candidate
    step: Step
    peak_memory: float
    calls: int = 1
    stride: int = 1
    seconds: dict[int, float] = field(default_factory=dict)


def measure(
    case: Case, candidates: Sequence[Candidate], device: str, seconds: float, rounds: int | None = None
) -> list[Result]:
    """Measure all candidates on one problem; the first one of a family is the base of its ratios.

    A round takes one sample of each; the order rotates from round to round, so that drift of the machine and the state
    of caches and heap affect all losses equally. Ratios are taken within a round.

    Args:
        case: the logits.
        candidates: the losses; the result of one that cannot be measured has the reason.
        device: "cpu" or "cuda".
        seconds: time limit; no round starts after it, but there are at least five.
        rounds: number of rounds; overrides ``seconds``.
    """
    problem = case.problem(device)
    torch.compiler.reset()  # otherwise a function is no longer compiled after eight shapes
    trials: dict[Candidate, _Trial] = {}
    skipped: dict[Candidate, str] = {}
    for candidate in candidates:
        try:
            trials[candidate] = _prepare(candidate, problem, device)
        except Exception as error:  # any package can fail; the other losses are still measured
            skipped[candidate] = _reason(error)
    references = {candidate.family: candidate for candidate in reversed(candidates)}
    for reference in references.values():
        if reference in skipped:
            raise RuntimeError(f"{reference.title} cannot be measured: {skipped[reference]}")
    _take_rounds(list(trials.values()), trials[candidates[0]], device, seconds, rounds)
    return [
        Result(candidate, skipped=skipped[candidate])
        if candidate in skipped
        else _result(trials[candidate], trials[references[candidate.family]])
        for candidate in candidates
    ]


def _prepare(candidate: Candidate, problem: Problem | LayerProblem, device: str) -> _Trial:
    """Warm up, measure the peak memory, and choose the number of calls per sample."""
    with _forced(candidate.backend):
        _check_memory(candidate, problem, device)
        step = candidate.prepare(problem)
        for _ in range(3):  # on a GPU the first call compiles, and the allocator settles by the third
            step()
            if device == "cpu":
                break
        trial = _Trial(candidate, step, peak_bytes(step, device) / problem.logits_bytes)
    _sample(trial, device)  # warm up again after the profiler
    trial.calls = max(1, round(SAMPLE_SECONDS / _sample(trial, device)))
    _trim_heap()
    return trial


def _check_memory(candidate: Candidate, problem: Problem | LayerProblem, device: str) -> None:
    """Refuse a loss that would run out of memory, estimated from two parts of the problem if that is large."""
    size, free = problem.logits_bytes, _free_memory()
    if device != "cpu" or size < LARGE_BYTES or free is None:
        return
    total = len(problem.target)
    rows = max(1, total * TRIAL_BYTES // size)
    one, two = (peak_bytes(candidate.prepare(problem.first(part * rows)), "cpu") for part in (1, 2))
    need = HEAP_GROWTH * (one + (two - one) * (total - rows) / rows)
    if need > free:
        raise UnfitError(f"it would need about {need / 2**30:.1f} GiB of memory, where {free / 2**30:.1f} GiB are free")


def _free_memory() -> int | None:
    """Available memory in bytes; None where the system does not report it."""
    try:
        with open("/proc/meminfo") as lines:
            return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    except OSError:
        return None


def peak_bytes(step: Callable[[], object], device: str) -> int:
    """Peak bytes that ``step`` allocates through torch's allocator on the device."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    assert trace.profiler is not None
    assert trace.profiler.kineto_results is not None
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.maximum.accumulate(np.cumsum([0, *changes]))[-1])


def _take_rounds(trials: list[_Trial], base: _Trial, device: str, seconds: float, rounds: int | None) -> None:
    expected = {trial.candidate: _sample(trial, device) * trial.calls for trial in trials}
    for trial in trials:
        trial.stride = max(1, round(expected[trial.candidate] / expected[base.candidate] / SLOW_FACTOR))
    began, taken = time.perf_counter(), 0
    gc.collect()
    gc.disable()
    try:
        while taken < (rounds or MIN_ROUNDS) or (rounds is None and time.perf_counter() - began < seconds):
            present = [trial for trial in trials if taken % trial.stride == 0]
            first = taken % len(present)
            for trial in present[first:] + present[:first]:
                trial.seconds[taken] = _sample(trial, device)
            taken += 1
    finally:
        gc.enable()


def _sample(trial: _Trial, device: str) -> float:
    """Seconds per call, averaged over a sample."""
    step, calls = trial.step, range(trial.calls)
    with _forced(trial.candidate.backend):
        if device == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            for _ in calls:
                step()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / 1000 / trial.calls
        began = time.perf_counter()
        for _ in calls:
            step()
        return (time.perf_counter() - began) / trial.calls


def _result(trial: _Trial, base: _Trial) -> Result:
    milliseconds = [1000 * seconds for seconds in trial.seconds.values()]
    ratios = [seconds / base.seconds[number] for number, seconds in trial.seconds.items() if number in base.seconds]
    return Result(
        trial.candidate, len(ratios), _quantiles(milliseconds), _quantiles(ratios), round(trial.peak_memory, 4)
    )


def _quantiles(values: Sequence[float]) -> Quantiles:
    low, middle, high = (float(f"{value:.5g}") for value in np.quantile(values, (0.2, 0.5, 0.8)))
    return low, middle, high


def _reason(error: Exception) -> str:
    first = (str(error).strip() or "no message").splitlines()[0]
    return first if type(error).__name__ == "UnfitError" else f"{type(error).__name__}: {first}"


@contextlib.contextmanager
def _forced(backend: str) -> Iterator[None]:
    """Force a kernel backend for the duration of the context; "" changes nothing."""
    before = kernels.forced_backend
    kernels.forced_backend = backend or before
    try:
        yield
    finally:
        kernels.forced_backend = before


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Silence file descriptor 2: the profiler's C++ code prints its start, its end and a missing GPU there."""
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def can_warm_heap() -> bool:
    """Return True if the C library is glibc, which can be set to retain freed memory."""
    return platform.libc_ver()[0] == "glibc"


def _trim_heap() -> None:
    """Return free memory to the system; otherwise a warm heap would be as large as the most demanding loss made it."""
    if can_warm_heap():
        ctypes.CDLL(None).malloc_trim(0)


def keep_heap() -> None:
    """Retain freed memory for the rest of the process, so that no call pays for new pages.

    By default glibc maps every buffer above 32 MiB from the system and returns it when freed: the kernel then clears
    its pages at each call, which can cost more than the loss.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # names and values of malloc.h
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, -1)):  # -1: never
        raise RuntimeError("mallopt failed; use --default-heap")
