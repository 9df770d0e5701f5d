"""Backends of the two losses, and the choice of the fastest that is available.

* **native**: C++ for the CPU, vectorised and threaded, one read of the logits and one write of the gradient;
* **triton**: the same for GPUs;
* **plain**: the closed form in torch, for every other device and as fallback.

``CYCLOFOCAL_BACKEND=native|triton|plain`` forces one, for debugging; it is read at import, into ``forced_backend``.
``describe()`` reports which is used where, and why.
"""

import functools
import importlib
import os
from types import ModuleType

BACKENDS = {"native": "cyclofocal.kernels.native", "triton": "cyclofocal.kernels.triton_backend"}
FORCE = "CYCLOFOCAL_BACKEND"

forced_backend = os.environ.get(FORCE, "")
"""Backend to use; empty for the fastest. (Reading the environment at each call would take as long as its checks.)"""


def backend(device: str) -> ModuleType:
    """Return the module with ``softmax`` and ``sigmoid`` for this device type ("cpu", "cuda", ...).

    Raises:
        ValueError: ``forced_backend`` is no backend.
        RuntimeError: it cannot serve this device, with the reason.
    """
    return _backend(device, forced_backend)


def describe() -> dict[str, str]:
    """Report which backend serves which device, and why the others do not.

    Example:
        >>> sorted(describe())
        ['cpu', 'cuda', 'native', 'other', 'triton']
    """
    served = {"cpu": _serving("cpu"), "cuda": _serving("cuda"), "other": _serving("other")}
    return served | {name: _reason(name) or "available" for name in BACKENDS}


def _serving(device: str) -> str:
    try:
        return backend(device).__name__.rsplit(".", 1)[-1].removesuffix("_backend")
    except RuntimeError as error:
        return str(error)


@functools.cache
def _backend(device: str, forced_backend: str) -> ModuleType:
    if forced_backend and forced_backend not in (*BACKENDS, "plain"):
        raise ValueError(f"{FORCE} is {forced_backend!r}; it must be native, triton or plain, or not set")
    fastest = {"cpu": "native", "cuda": "triton"}.get(device, "plain")
    chosen = forced_backend or fastest
    if chosen != "plain":
        reason = _reason(chosen) or _unsupported(chosen, device)
        if not reason:
            return importlib.import_module(BACKENDS[chosen])
        if forced_backend:
            raise RuntimeError(f"{FORCE}={forced_backend} cannot serve tensors on {device}: {reason}")
    return importlib.import_module("cyclofocal.kernels.plain")


def _unsupported(name: str, device: str) -> str:
    if name == "native" and device != "cpu":
        return "it is for the CPU"
    if name == "triton" and device != "cuda" and not (device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return "it is for GPUs (or the CPU with TRITON_INTERPRET=1)"
    return ""


def _reason(name: str) -> str:
    """Return why a backend is not available here; empty if it is."""
    module = importlib.import_module(BACKENDS[name])
    return "" if module.available() else module.reason()
