"""Ways to compute a last layer and its loss, with the logits between them or without."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cyclofocal import cyclical_focal_loss, linear_cyclical_focal_loss
from cyclofocal.lab.bench.candidates import (
    CYCLOFOCAL_SETTINGS,
    FUSED_BACKENDS,
    REFERENCES,
    Candidate,
    LossFunction,
    Step,
    UnfitError,
    compiled,
    cyclofocal_candidate,
)

LEAN_ROWS = 128
"""Rows of a chunk with which torch's linear_cross_entropy takes the least memory."""

CHUNKER: dict[str, Any] = {"auto_chunker.enable": True, "auto_chunker.amplify_ratio_threshold": 2}
"""Options of Inductor; its default threshold, 8 times as many logits as inputs and weights, is more than here."""


@dataclass(frozen=True)
class LayerProblem:
    """Input (N, D) and weight (C, D) of a last layer, which need gradients, and class indices (N,)."""

    hidden: Tensor
    weight: Tensor
    target: Tensor

    @property
    def logits_bytes(self) -> int:
        return len(self.hidden) * len(self.weight) * self.hidden.itemsize

    def first(self, rows: int) -> "LayerProblem":
        """Return the problem of the first ``rows`` rows."""
        return LayerProblem(self.hidden[:rows].detach().requires_grad_(), self.weight, self.target[:rows])


def layer_candidates(device: str, *, compiled_too: bool) -> list[Candidate]:
    """All ways to compute a last layer and its loss; the first is the reference of the ratios."""
    fused, title = FUSED_BACKENDS[device], REFERENCES["layer"]
    torch_loss = _with_logits(F.cross_entropy)
    ours = functools.partial(linear_cyclical_focal_loss, eta=0.5, **CYCLOFOCAL_SETTINGS)
    ours_with_logits = _with_logits(functools.partial(cyclical_focal_loss, eta=0.5, **CYCLOFOCAL_SETTINGS))
    ours_lean = functools.partial(ours, chunk_rows=LEAN_ROWS)
    found = [
        _torch(title, _layer(torch_loss)),
        _torch("torch linear_cross_entropy, chunked", _layer(_in_chunks()), "options: default"),
        _torch("torch linear_cross_entropy, compact", _layer(_in_chunks(acc_policy="compact")), "acc_policy=compact"),
        cyclofocal_candidate(f"linear + cyclofocal, {fused}", _layer(ours_with_logits), fused, "layer"),
        cyclofocal_candidate(f"cyclofocal linear, {fused}", _layer(ours), fused, "layer"),
        cyclofocal_candidate(f"cyclofocal linear, {LEAN_ROWS} rows, {fused}", _layer(ours_lean), fused, "layer"),
    ]
    if compiled_too:
        options = ", ".join(f"{name}={value}" for name, value in CHUNKER.items())
        found += [
            _torch(f"{title}, compiled", _layer(compiled(torch_loss))),
            _torch(f"{title}, compiled in chunks", _layer(compiled(torch_loss, CHUNKER)), options),
            cyclofocal_candidate(f"cyclofocal linear, compiled, {fused}", _layer(compiled(ours)), fused, "layer"),
        ]
    return found


def _torch(title: str, prepare: Callable[[LayerProblem], Step], settings: str = "") -> Candidate:
    return Candidate(title, "torch", prepare, "layer", settings)


def _layer(loss: LossFunction) -> Callable[[LayerProblem], Step]:
    def prepare(problem: LayerProblem) -> Step:
        hidden, weight = problem.hidden, problem.weight
        return lambda: torch.autograd.grad(loss(hidden, weight, problem.target), (hidden, weight))

    return prepare


def _with_logits(loss: LossFunction) -> LossFunction:
    return lambda hidden, weight, target: loss(F.linear(hidden, weight), target)


def _in_chunks(**options: Any) -> LossFunction:
    def loss(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        if not hasattr(F, "linear_cross_entropy"):
            raise UnfitError("it needs torch 2.13")
        return F.linear_cross_entropy(hidden, weight, target, options=nn.LinearCrossEntropyOptions(**options))

    return loss
