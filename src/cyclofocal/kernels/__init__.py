"""One function per family, computed by the fastest backend that is there.

* **native**: C++ for the CPU, vectorised and threaded, one read of the logits and one write of the gradient;
* **triton**: the same for GPUs;
* **plain**: the closed form in torch, for every other device, and the fallback.

``CYCLOFOCAL_BACKEND=native|triton|plain`` forces one, for debugging; it is read at import, into ``forced``.
``describe()`` says which is used where and why.
"""

import functools
import importlib
import os
from types import ModuleType

BACKENDS = {"native": "cyclofocal.kernels.native", "triton": "cyclofocal.kernels.triton_backend"}
FORCE = "CYCLOFOCAL_BACKEND"

forced = os.environ.get(FORCE, "")
"""The backend asked for; empty for the fastest. (To look into the environment takes as long as checking a call.)"""


def backend(device: str) -> ModuleType:
    """The module that computes on this device type ("cpu", "cuda", ...): it has ``softmax`` and ``sigmoid``.

    Raises:
        ValueError: ``forced`` is no backend.
        RuntimeError: it cannot serve this device, with the reason.
    """
    return _backend(device, forced)


def describe() -> dict[str, str]:
    """Which backend serves which device, and why the others do not.

    Example:
        >>> sorted(describe())
        ['cpu', 'cuda', 'native', 'other', 'triton']
    """
    served = {"cpu": _serving("cpu"), "cuda": _serving("cuda"), "other": _serving("other")}
    return served | {name: _reason(name) or "available" for name in BACKENDS}


def _serving(device: str) -> str:
    try:
        return backend(device).__name__.rsplit(".", 1)[-1].removesuffix("_backend")
    except RuntimeError as misfit:
        return str(misfit)


@functools.cache
def _backend(device: str, forced: str) -> ModuleType:
    if forced and forced not in (*BACKENDS, "plain"):
        raise ValueError(f"{FORCE} is {forced!r}; it must be native, triton or plain, or not set")
    natural = {"cpu": "native", "cuda": "triton"}.get(device, "plain")
    wanted = forced or natural
    if wanted != "plain":
        reason = _reason(wanted) or _misfit(wanted, device)
        if not reason:
            return importlib.import_module(BACKENDS[wanted])
        if forced:
            raise RuntimeError(f"{FORCE}={forced} cannot serve tensors on {device}: {reason}")
    return importlib.import_module("cyclofocal.kernels.plain")


def _misfit(name: str, device: str) -> str:
    if name == "native" and device != "cpu":
        return "it is for the CPU"
    if name == "triton" and device != "cuda" and not (device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return "it is for GPUs (or the CPU with TRITON_INTERPRET=1)"
    return ""


def _reason(name: str) -> str:
    """Why a backend is not available here; empty if it is."""
    module = importlib.import_module(BACKENDS[name])
    return "" if module.available() else module.reason()
