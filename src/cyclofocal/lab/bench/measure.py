"""Time and peak memory of losses on one problem, all interleaved in one process."""

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
from torch.profiler import ProfilerActivity, profile

from cyclofocal import kernels
from cyclofocal.lab.bench.candidates import Candidate, Problem, Step, UnfitError

SAMPLE_SECONDS = 0.002
"""A sample repeats the call until it takes so long: a clock and a loop cost little of that."""

LEAST_ROUNDS = 5
PATIENCE = 5
"""A loss whose sample takes so many times torch's is left out of rounds in proportion."""

LARGE, PART = 2**28, 2**25
"""Bytes of logits from which a loss is tried on a part of them first, and bytes of that part."""

GROWTH = 3
"""A kept heap grows to about so many times of what is in use, as no aligned block fits where an equal one was freed."""

Quantiles = tuple[float, float, float]
"""20 %, 50 % and 80 %."""


@dataclass(frozen=True)
class Case:
    """The shape (N, C, ...) and dtype of logits, the dtype by its name in torch."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def title(self) -> str:
        return " x ".join(f"{size:,}" for size in self.shape)

    def problem(self, device: str) -> Problem:
        """Normal logits and uniform labels, the same at every call."""
        generator = torch.Generator(device).manual_seed(0)
        logits = torch.randn(self.shape, device=device, generator=generator).to(getattr(torch, self.dtype))
        rows = self.shape[:1] + self.shape[2:]
        target = torch.randint(self.shape[1], rows, device=device, generator=generator)
        return Problem(logits.requires_grad_(), target)


@dataclass(frozen=True)
class Result:
    """What was found of one loss: numbers, or why there are none.

    Attributes:
        candidate: the loss.
        rounds: in which it took part.
        milliseconds: of one forward and backward.
        ratio: of its time to that of the first candidate, taken in each round.
        peak_memory: beyond the logits and the target, in units of the logits; gradient included.
        skipped: the reason; empty if it was measured.
    """

    candidate: Candidate
    rounds: int = 0
    milliseconds: Quantiles | None = None
    ratio: Quantiles | None = None
    peak_memory: float | None = None
    skipped: str = ""


@dataclass
class _Trial:
    """A loss that can be measured, and its seconds per call, round by round."""

    candidate: Candidate
    step: Step
    peak_memory: float
    calls: int = 1
    stride: int = 1
    seconds: dict[int, float] = field(default_factory=dict)


def measure(
    case: Case, candidates: Sequence[Candidate], device: str, seconds: float, rounds: int | None = None
) -> list[Result]:
    """Measure all candidates on one problem; the first one is the base of all ratios.

    A round takes one sample of each, in an order that is rotated from round to round, so that drift of the machine
    and what a predecessor leaves in caches and heap hit all alike. Ratios are taken within a round.

    Args:
        case: the logits.
        candidates: the losses; those that cannot be measured come back with the reason.
        device: "cpu" or "cuda".
        seconds: no round begins after so long, but there are five at least.
        rounds: so many, however long they take.
    """
    problem = case.problem(device)
    trials: dict[Candidate, _Trial] = {}
    skipped: dict[Candidate, str] = {}
    for candidate in candidates:
        try:
            trials[candidate] = _prepare(candidate, problem)
        except Exception as error:  # of any package: its loss is left out, the others are measured
            skipped[candidate] = _in_words(error)
    base = trials.get(candidates[0])
    if base is None:
        raise RuntimeError(f"{candidates[0].title} cannot be measured: {skipped[candidates[0]]}")
    _take_rounds(list(trials.values()), base, device, seconds, rounds)
    return [
        Result(candidate, skipped=skipped[candidate]) if candidate in skipped else _result(trials[candidate], base)
        for candidate in candidates
    ]


def _prepare(candidate: Candidate, problem: Problem) -> _Trial:
    """Warm up, look at the memory once, and find how many calls make a sample."""
    device = problem.logits.device.type
    with _forced(candidate.backend):
        _check_memory(candidate, problem)
        step = candidate.prepare(problem)
        for _ in range(3):  # a GPU compiles at the first, its allocator settles by the third
            step()
            if device == "cpu":
                break
        size = problem.logits.numel() * problem.logits.element_size()
        trial = _Trial(candidate, step, peak_bytes(step, device) / size)
    _sample(trial, device)  # the profiler has left it cold
    trial.calls = max(1, round(SAMPLE_SECONDS / _sample(trial, device)))
    _trim_heap()
    return trial


def _check_memory(candidate: Candidate, problem: Problem) -> None:
    """Refuse a loss for which the memory would not suffice, by what it takes for a part of large logits."""
    logits, free = problem.logits, _free_memory()
    size = logits.numel() * logits.element_size()
    if logits.device.type != "cpu" or size < LARGE or free is None:
        return
    rows = max(1, len(logits) * PART // size)
    step = candidate.prepare(Problem(logits[:rows].detach().requires_grad_(), problem.target[:rows]))
    need = GROWTH * peak_bytes(step, "cpu") * len(logits) / rows
    if need > free:
        raise UnfitError(f"it would need about {need / 2**30:.1f} GiB of memory, where {free / 2**30:.1f} GiB are free")


def _free_memory() -> int | None:
    """Bytes that this machine can still give; None where it does not tell."""
    try:
        with open("/proc/meminfo") as lines:
            return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    except OSError:
        return None


def peak_bytes(step: Callable[[], object], device: str) -> int:
    """Most bytes of the device's memory that ``step`` held at once, through torch's allocator."""
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
        trial.stride = max(1, round(expected[trial.candidate] / expected[base.candidate] / PATIENCE))
    began, taken = time.perf_counter(), 0
    gc.collect()
    gc.disable()
    try:
        while taken < (rounds or LEAST_ROUNDS) or (rounds is None and time.perf_counter() - began < seconds):
            present = [trial for trial in trials if taken % trial.stride == 0]
            first = taken % len(present)
            for trial in present[first:] + present[:first]:
                trial.seconds[taken] = _sample(trial, device)
            taken += 1
    finally:
        gc.enable()


def _sample(trial: _Trial, device: str) -> float:
    """Seconds of one call, the mean over a sample's calls."""
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
    ratios = [seconds / base.seconds[number] for number, seconds in trial.seconds.items()]
    return Result(
        trial.candidate, len(ratios), _quantiles(milliseconds), _quantiles(ratios), round(trial.peak_memory, 4)
    )


def _quantiles(values: Sequence[float]) -> Quantiles:
    low, middle, high = (float(f"{value:.5g}") for value in np.quantile(values, (0.2, 0.5, 0.8)))
    return low, middle, high


def _in_words(error: Exception) -> str:
    first = (str(error).strip() or "no message").splitlines()[0]
    return first if type(error).__name__ == "UnfitError" else f"{type(error).__name__}: {first}"


@contextlib.contextmanager
def _forced(backend: str) -> Iterator[None]:
    """Ours is computed by this backend, whatever else is forced; "" leaves it as it is."""
    before = kernels.forced_backend
    kernels.forced_backend = backend or before
    try:
        yield
    finally:
        kernels.forced_backend = before


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """The profiler's C++ part writes of its start, its end and a missing GPU straight to the terminal."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def can_warm_heap() -> bool:
    """Whether this process's C library is glibc, whose heap can be told to keep what it has."""
    return platform.libc_ver()[0] == "glibc"


def _trim_heap() -> None:
    """Give back what is free, or the heap that is kept would be as large as all losses in turn have made it."""
    if can_warm_heap():
        ctypes.CDLL(None).malloc_trim(0)


def keep_heap() -> None:
    """Keep freed memory for the rest of the process, so that no call pays for fresh pages.

    By default glibc maps every buffer above 32 MiB anew and gives it back when freed: the kernel then clears its pages
    on each call, which can cost more than the loss.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # names and values of malloc.h
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, -1)):  # -1: never
        raise RuntimeError("mallopt refused to keep the heap")
