"""Clock of a loss module: the progress of training, and the eta that follows from it."""

import functools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from cyclofocal.arguments import can_read, check_unit_interval, is_traced, is_transformed, warn_caller
from cyclofocal.ranges import check_at_least
from cyclofocal.schedules import check_cyclical_factor, unchecked_eta

CLOCK = ("step", "progress", "eta", "last_eta", "last_progress")
FLOAT32 = (*CLOCK, "logit_offset")
"""Buffers of a loss that a change of the module's dtype leaves as they are."""

_pack, _round = struct.Struct("2f").pack, struct.Struct("2f").unpack

STALE_STEPS = 100
"""Training steps without any progress set, after which the loss warns."""


@dataclass(slots=True)
class _Host:
    """The clock in Python numbers, which eager mode reads and moves at no cost.

    The buffers follow when somebody looks at them: ``state_dict``, a compiled graph, an attribute. In turn the numbers
    are void once others have written into the buffers, as a compiled graph does.

    They are in an object rather than in the module because setting an attribute of a module takes a microsecond.
    """

    step: int = 0
    progress: float = 0.0
    """Rounded to float32, as in the buffer, so that a resumed training has the same."""
    eta: float = 0.0
    """Rounded to float32 too."""
    is_ahead: bool = False
    """True if the buffers do not have these numbers yet."""
    buffers: tuple[Tensor, ...] = ()
    """Buffers to which these numbers belong."""
    writes: int = 0
    """Writes into those buffers so far."""
    forwards: int = 0
    """Training forwards, for the two warnings."""
    is_set: bool = False
    """True if ``set_progress`` or ``load_state_dict`` has set the clock, and no ``end_training`` came after."""
    last: dict[str, float | Tensor] = field(default_factory=dict)
    """Eta and progress of the last forward outside of a backward pass; compiled graphs have buffers of these names."""


class Clocked(nn.Module):
    """A loss whose eta follows the progress of training; see :class:`cyclofocal.CyclicalFocalLoss`.

    A training forward is counted when the backward pass reaches its loss. Activation checkpointing runs a forward a
    second time, inside of the backward pass: that one takes the eta of the last forward outside of it, and of the two
    only one is reached.
    """

    step: Tensor
    progress: Tensor
    eta: Tensor
    last_eta: Tensor
    last_progress: Tensor
    _needs_progress = True
    """False for a loss that is the same at any progress."""

    def __init__(
        self,
        cyclical_factor: float,
        schedule: Callable[[Any], Any] | None,
        total_steps: int | None,
        accumulation: int,
        cyclical_in_eval: bool,
    ) -> None:
        super().__init__()
        check_at_least("total_steps", total_steps)
        check_at_least("accumulation", accumulation)
        self.cyclical_factor = cyclical_factor
        check_cyclical_factor(cyclical_factor)
        self.schedule = schedule or functools.partial(unchecked_eta, cyclical_factor=cyclical_factor)
        self.total_steps = total_steps
        self.accumulation = accumulation
        self.cyclical_in_eval = cyclical_in_eval
        self._host = _Host()
        with torch.inference_mode(False):  # otherwise training could not write into the buffers
            for name in CLOCK:
                dtype = torch.int64 if name == "step" else torch.float32
                self.register_buffer(name, torch.zeros((), dtype=dtype), persistent=not name.startswith("last_"))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the clock to the beginning of training, also after ``to_empty``. Class weights do not change."""
        self._host = _Host()
        self._move(0, 0.0, self.schedule(0.0))
        self.last_eta.copy_(self.eta)
        self.last_progress.zero_()

    def set_progress(self, progress: float) -> None:
        """Set the clock to ``progress`` in [0, 1]; with ``total_steps`` counting resumes from there.

        Raises:
            ValueError: progress outside [0, 1].
        """
        progress = float(progress)
        check_unit_interval("progress", progress)
        eta = self.schedule(progress)  # may raise, before anything has moved
        step = 0 if self.total_steps is None else round(progress * (self.total_steps - 1)) * self.accumulation
        self._move(step, progress, eta)
        self._update_buffers()  # rare, and a compiled graph then has nothing to write
        self._host.forwards, self._host.is_set = step, True

    def end_training(self) -> None:
        """Mark the end of a training, so that a second training without ``set_progress`` warns again.

        Progress and eta stay at their last values. With ``total_steps`` this changes nothing: the loss itself counts
        to the end.
        """
        if self.total_steps is None:
            self._host.forwards, self._host.is_set = 0, False

    def extra_repr(self) -> str:
        settings = [f"cyclical_factor={self.cyclical_factor}"]
        if self.total_steps is not None:
            settings.append(f"total_steps={self.total_steps}")
        if self.accumulation != 1:
            settings.append(f"accumulation={self.accumulation}")
        if self.cyclical_in_eval:
            settings.append("cyclical_in_eval=True")
        return ", ".join(settings)

    def _now(self, name: str) -> float | Tensor:
        """Return a value of the clock for this forward, which a recomputation of the forward gets again.

        It is a number where that is free, otherwise a copy, as the buffer may change.
        """
        buffers: Any = self._buffers
        if is_compiling():
            self._update_buffers()
            now, last = buffers[name], buffers[f"last_{name}"]
            in_backward = torch.ops.cyclofocal.backward_state(buffers["step"])[0]
            last.copy_(torch.where(in_backward, last, now))
            return last.clone()
        host = self._host
        if not _in_backward() or name not in host.last:
            host.last[name] = getattr(host, name) if self._is_on_host() else buffers[name].clone()
        return host.last[name]

    def take_eta(self) -> tuple[float, Callable[[], None] | None] | None:
        """Return eta for a training forward that will be differentiated, and what its backward pass has to call.

        This is what the general ``_now`` and ``_count`` do, at a third of the cost. The caller makes sure that nothing
        is traced or transformed. None: this forward takes more than reading a number.
        """
        host = self._host
        if _in_backward() or not (host.is_ahead or self._is_on_host()):
            return None
        host.last["eta"] = eta = host.eta
        self._warn()
        if self.total_steps is not None:
            return eta, self._advance
        host.forwards += 1
        return eta, None

    def _count(self, loss: Tensor) -> None:
        """Count a training forward, once its loss is reached by a backward pass or at once if there is none to come."""
        if not (self.training and torch.is_grad_enabled()):
            return
        if is_compiling():
            if self.total_steps is not None:
                self._advance_buffers(~torch.ops.cyclofocal.backward_state(self._buffers["step"])[1])
            return
        recomputed = _in_backward()
        if not recomputed:
            self._warn()
        if self.total_steps is None:
            self._host.forwards += not recomputed
            return
        if (node := loss.grad_fn) is not None and not is_transformed():
            if hasattr(node, "on_backward"):
                node.on_backward = self._advance
            else:
                node.register_prehook(_AdvanceOnce(self))
        elif not recomputed:
            self._advance()

    def _advance(self) -> None:
        assert self.total_steps is not None
        host = self._host
        host.forwards += 1
        if (is_compiling() or not host.is_ahead) and not self._is_on_host():
            self._advance_buffers(1)
            return
        step, last = host.step + 1, self.total_steps - 1
        done = step // self.accumulation
        progress = done / last if done < last else 1.0 if last else 0.0
        self._move(step, progress, self.schedule(progress))

    def _advance_buffers(self, steps: int | Tensor) -> None:
        """Count steps in the buffers without reading anything back: no stall, no recompilation."""
        assert self.total_steps is not None
        step, progress, eta = self._clock_buffers()
        step += steps
        last = self.total_steps - 1
        done = torch.div(step, self.accumulation, rounding_mode="floor").clamp(max=last)
        progress.copy_(done / max(last, 1))
        eta.copy_(self.schedule(progress))

    def _move(self, step: int, progress: float, eta: float) -> None:
        """Set the clock on the host; the buffers follow when somebody looks."""
        host = self._host
        host.step = step
        host.progress, host.eta = _round(_pack(progress, eta))
        host.is_ahead = True

    def _is_on_host(self) -> bool:
        """Return True if the numbers of the host are valid, after reading the buffers where that is free."""
        host = self._host
        if is_traced():
            self._update_buffers()
            return False
        if host.is_ahead:  # also if others have written: data-parallel wrappers send buffers that nobody has looked at
            return True
        step, progress, eta = buffers = self._clock_buffers()
        known = host.buffers
        if known and step is known[0] and progress is known[1] and eta is known[2] and _writes(buffers) == host.writes:
            return True
        if not all(map(can_read, buffers)):
            return False
        self._read_buffers()
        return True

    def _read_buffers(self) -> None:
        host, buffers = self._host, self._clock_buffers()
        host.step, host.progress, host.eta = (buffer.item() for buffer in buffers)  # type: ignore[assignment]
        self._note_buffers(buffers)

    def _update_buffers(self) -> None:
        """Bring the buffers up to the host, for somebody who looks at them."""
        host = self._host
        if not host.is_ahead:
            return
        buffers = self._clock_buffers()
        for buffer, number in zip(buffers, (host.step, host.progress, host.eta), strict=True):
            buffer.fill_(number)
        self._note_buffers(buffers)

    def _note_buffers(self, buffers: tuple[Tensor, Tensor, Tensor]) -> None:
        """Note that the buffers hold the numbers of the host."""
        host = self._host
        host.is_ahead = False
        if not is_compiling() and not any(map(torch.is_inference, buffers)):  # which count no writes
            host.buffers, host.writes = buffers, _writes(buffers)

    def _clock_buffers(self) -> tuple[Tensor, Tensor, Tensor]:
        buffers: Any = self._buffers
        return buffers["step"], buffers["progress"], buffers["eta"]

    def __getattr__(self, name: str) -> Any:
        if name in CLOCK:
            self._update_buffers()
        return super().__getattr__(name)

    def named_buffers(self, *args: Any, **settings: Any) -> Iterator[tuple[str, Tensor]]:
        self._update_buffers()
        return super().named_buffers(*args, **settings)

    def _save_to_state_dict(self, *args: Any) -> None:
        self._update_buffers()
        super()._save_to_state_dict(*args)

    def __getstate__(self) -> dict[str, Any]:
        self._update_buffers()
        return {**self.__dict__, "_host": replace(self._host, buffers=())}

    def _warn(self) -> None:
        host = self._host
        if self.total_steps is None:
            if host.forwards == STALE_STEPS - 1 and not host.is_set and self._needs_progress:
                warn_caller(
                    f"progress was never set in {STALE_STEPS} training steps, so eta does not change; call set_progress"
                    " every epoch, or give total_steps at construction"
                )
        elif host.forwards == self.total_steps * self.accumulation:
            warn_caller(
                f"more training steps than total_steps={self.total_steps} (accumulation={self.accumulation}); progress"
                " stays at 1"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Clocked":
        """Move the clock with the module, but never round or lose it: .half() and to_empty() are for weights."""
        on_host = self._is_on_host()
        self._update_buffers()
        before = {name: value for name in FLOAT32 if (value := self._buffers.get(name)) is not None}
        super()._apply(fn, recurse)
        for name, value in before.items():
            moved = getattr(self, name)
            if value.is_meta and not moved.is_meta:
                setattr(self, name, moved.to(value.dtype))  # memory without values yet
            elif type(moved) is Tensor:  # not fake, not distributed
                setattr(self, name, value.to(moved.device))
        if before["step"].is_meta and not self.step.is_meta:
            self.reset_parameters()
        elif on_host:
            self._note_buffers(self._clock_buffers())
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *rest: Any,
    ) -> None:
        """Load clock and weights; without any clock, as of cross-entropy, begin a training and warn."""
        self._update_buffers()  # the state comes after what the host has counted
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *rest)
        if not any(prefix + name in state_dict for name in CLOCK):
            own = {prefix + name for name in self._buffers}
            missing_keys[:] = [key for key in missing_keys if key not in own]
            self._begin_after_another_loss()
            return
        if not self.step.is_meta:
            self._read_buffers()
            self._host.forwards = self._host.step
        self._host.is_set = True

    def _begin_after_another_loss(self) -> None:
        if not self.step.is_meta:
            self.reset_parameters()
        if self._needs_progress:
            warn_caller(
                "the checkpoint holds no clock of this loss, as one of cross-entropy does not: its progress is 0, the"
                " beginning of a training; call set_progress to continue elsewhere"
            )

    def _replicate_for_data_parallel(self) -> "Clocked":
        """Give a replica on another device separate numbers, as it has separate buffers."""
        replica = super()._replicate_for_data_parallel()
        replica._host = replace(self._host, last={}, buffers=())
        return replica


class _AdvanceOnce:
    """A hook of a loss: its clock advances when a backward pass reaches it for the first time."""

    def __init__(self, clocked: Clocked) -> None:
        self.clocked: Clocked | None = clocked

    def __call__(self, _grads: tuple[Tensor, ...]) -> None:
        if self.clocked is not None:
            self.clocked._advance()
            self.clocked = None


def _writes(buffers: tuple[Tensor, Tensor, Tensor]) -> int:
    """Count the writes into the buffers, compiled graphs' included."""
    step, progress, eta = buffers
    return step._version + progress._version + eta._version


def _in_backward() -> bool:
    """Return True inside a backward pass of this thread."""
    return torch._C._current_graph_task_id() >= 0


def _backward_state(step: Tensor) -> Tensor:
    """Two booleans on the device of ``step``: in a backward pass; in the recomputation of a forward that has counted.

    The latter has hooks on what it saves. (A reentrant checkpoint has none, and did not count in its forward.)
    """
    in_backward = _in_backward()
    return torch.tensor([in_backward, in_backward and _has_saved_tensors_hooks()], device=step.device)


def _has_saved_tensors_hooks() -> bool:
    """Return True inside hooks on saved tensors: torch refuses to disable them while there are any."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("they are enabled again at once"):
            return False
    except RuntimeError:
        return True


_library = torch.library.Library("cyclofocal", "FRAGMENT")
_library.define("backward_state(Tensor step) -> Tensor")  # asked when a compiled graph runs, not when it is traced
_library.impl("backward_state", _backward_state, "CompositeExplicitAutograd")
torch.library.register_fake(
    "cyclofocal::backward_state", lambda step: step.new_empty(2, dtype=torch.bool), lib=_library
)
