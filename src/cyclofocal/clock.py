"""Clock of a loss module: the progress of training, and the eta that follows from it."""

import copy
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cyclofocal.arguments import can_read, check_at_least
from cyclofocal.schedules import cyclical_eta

CLOCK = ("step", "progress", "eta")
STALE_STEPS = 100
"""Training steps without any progress set, after which the loss warns."""


@dataclass(slots=True)
class _Past:
    """Counts of past forwards that only Python needs; the clock itself is in the buffers.

    They are in an object rather than in the module because setting an attribute of a module takes a microsecond.
    """

    forwards: int = 0
    """Training forwards, for the two warnings."""
    is_set: bool = False
    """True if ``set_progress`` or ``load_state_dict`` has set the clock, and no ``end_training`` came after."""
    last_eta: float | Tensor | None = None
    """Eta of the last forward outside a backward pass."""
    uncounted: int = 0
    """Training forwards without gradients that a backward pass may run again with them (reentrant checkpoints)."""


class Clocked(nn.Module):
    """A loss whose eta follows the progress of training; see :class:`cyclofocal.CyclicalFocalLoss`.

    A training forward uses eta and then advances the clock. Activation checkpointing runs a forward a second time,
    inside the backward pass: it uses the eta of the first and is not counted again.
    """

    step: Tensor
    progress: Tensor
    eta: Tensor

    def __init__(
        self,
        cyclical_factor: float,
        schedule: Callable[[Any], Any] | None,
        total_steps: int | None,
        accumulation: int,
        cyclical_in_eval: bool,
    ) -> None:
        super().__init__()
        self._past = _Past()
        check_at_least("total_steps", total_steps)
        check_at_least("accumulation", accumulation)
        self.cyclical_factor = cyclical_factor
        self.schedule = schedule or functools.partial(cyclical_eta, cyclical_factor=cyclical_factor)
        self.total_steps = total_steps
        self.accumulation = accumulation
        self.cyclical_in_eval = cyclical_in_eval
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("progress", torch.zeros((), dtype=torch.float32))
        self.register_buffer("eta", torch.zeros((), dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the clock to the beginning of training, also after ``to_empty``. Class weights do not change."""
        self._write(0, 0.0, self.schedule(0.0))
        self._past.forwards, self._past.is_set = 0, False

    def set_progress(self, progress: float) -> None:
        """Set the clock to ``progress`` in [0, 1]; with ``total_steps`` counting resumes from there.

        Raises:
            ValueError: progress outside [0, 1].
        """
        progress = float(progress)
        eta = self.schedule(progress)  # raises before anything has moved
        step = 0 if self.total_steps is None else round(progress * (self.total_steps - 1)) * self.accumulation
        self._write(step, progress, eta)
        self._past.forwards, self._past.is_set = step, True

    def end_training(self) -> None:
        """Mark the end of a training, so that a second training without ``set_progress`` warns again.

        Progress and eta stay at their last values. With ``total_steps`` this changes nothing: the loss itself counts
        to the end.
        """
        if self.total_steps is None:
            self._past.forwards, self._past.is_set = 0, False

    def extra_repr(self) -> str:
        settings = [f"cyclical_factor={self.cyclical_factor}"]
        if self.total_steps is not None:
            settings.append(f"total_steps={self.total_steps}")
        return ", ".join(settings)

    def _in_training_form(self) -> bool:
        return self.training or self.cyclical_in_eval

    def _eta_now(self) -> float | Tensor:
        """Return eta of this forward: a number where reading it is free, otherwise a copy, as the buffer may change."""
        if not self._in_training_form():
            return 0.0
        if torch.compiler.is_compiling():
            if self.total_steps is None or not self.training:
                return self.eta.clone()
            return torch.where(torch.ops.cyclofocal.runs_again(self.step), self._at(self.step - 1)[1], self.eta)
        if _in_backward() and self._past.last_eta is not None:
            return self._past.last_eta
        eta = self._buffers["eta"]
        assert eta is not None
        return eta.item() if can_read(eta) else eta.clone()

    def _advance(self, eta: float | Tensor) -> None:
        """Count a training forward that used this eta, once, even if it is recomputed."""
        if not self.training:
            return
        if torch.compiler.is_compiling():
            if torch.is_grad_enabled() and self.total_steps is not None:
                self._advance_on_device()
            return
        past, again = self._past, _in_backward()
        if not again:
            past.last_eta = eta
        if not torch.is_grad_enabled():
            past.uncounted += not again
            return
        if again and not past.uncounted:
            return
        past.uncounted = past.uncounted - 1 if again else 0
        past.forwards += 1
        self._warn(past)
        if self.total_steps is None:
            return
        step = self._buffers["step"]
        assert step is not None
        if not can_read(step):
            self._advance_on_device()
            return
        count, last = int(step.item()) + 1, self.total_steps - 1
        progress = min(count // self.accumulation, last) / max(last, 1)
        self._write(count, progress, self.schedule(progress))

    def _advance_on_device(self) -> None:
        """Advance without reading from the device: no synchronisation, no recompilation."""
        self.step += ~torch.ops.cyclofocal.runs_again(self.step) if torch.compiler.is_compiling() else 1
        progress, eta = self._at(self.step)
        self.progress.copy_(progress)
        self.eta.copy_(eta)

    def _at(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Return progress and eta after ``step`` forwards."""
        assert self.total_steps is not None
        last = self.total_steps - 1
        done = torch.div(step, self.accumulation, rounding_mode="floor").clamp(max=last)
        progress = done / max(last, 1)
        return progress, self.schedule(progress)

    def _write(self, step: int, progress: float, eta: float) -> None:
        buffers: Any = self._buffers
        buffers["step"].fill_(step)
        buffers["progress"].fill_(progress)
        buffers["eta"].fill_(eta)

    def _warn(self, past: _Past) -> None:
        if self.total_steps is None:
            if past.forwards == STALE_STEPS and not past.is_set:
                warnings.warn(
                    f"progress was never set in {STALE_STEPS} training steps, so eta does not change; call set_progress"
                    " every epoch, or give total_steps at construction",
                    stacklevel=4,
                )
        elif past.forwards == self.total_steps * self.accumulation + 1:
            warnings.warn(
                f"more training steps than total_steps={self.total_steps} (accumulation={self.accumulation}); progress"
                " stays at 1",
                stacklevel=4,
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Clocked":
        """Move the clock with the module, but never round or lose it: .half() and to_empty() are for weights."""
        before = {name: getattr(self, name) for name in CLOCK}
        super()._apply(fn, recurse)
        for name, value in before.items():
            moved = getattr(self, name)
            if value.is_meta and not moved.is_meta:
                setattr(self, name, moved.to(value.dtype))  # memory without values yet
            elif type(moved) is Tensor:  # not fake, not distributed
                setattr(self, name, value.to(moved.device))
        if before["step"].is_meta and not self.step.is_meta:
            self.reset_parameters()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.step.is_meta:
            self._past.forwards = int(self.step)
        self._past.is_set = True

    def _replicate_for_data_parallel(self) -> "Clocked":
        """Give a replica on another device a separate past, as it has separate buffers."""
        replica = super()._replicate_for_data_parallel()
        replica._past = copy.copy(self._past)
        return replica


def _in_backward() -> bool:
    """Return True inside a backward pass of this thread."""
    return torch._C._current_graph_task_id() >= 0


def _runs_again(step: Tensor) -> Tensor:
    """Return a 0-d bool on the device of ``step``: True in the recomputation of a checkpoint, which runs in a backward
    pass with hooks on saved tensors. (A reentrant checkpoint has none, and its forward was not counted.)"""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return torch.full((), _in_backward() and hooks is not None, device=step.device)


_library = torch.library.Library("cyclofocal", "FRAGMENT")
_library.define("runs_again(Tensor step) -> Tensor")  # evaluated when a compiled graph runs, not when it is traced
_library.impl("runs_again", _runs_again, "CompositeExplicitAutograd")
torch.library.register_fake("cyclofocal::runs_again", lambda step: step.new_empty((), dtype=torch.bool), lib=_library)
