"""Execution backends of a comparison: this machine, Ray or Slurm."""

from enum import StrEnum
from functools import partial
from pathlib import Path

import typer

from cyclofocal.lab.commands.options import refused
from cyclofocal.lab.compare.grid import Backend, Resources
from cyclofocal.lab.compare.local import cores, gpus, run_local
from cyclofocal.lab.compare.ray import load_ray, run_ray
from cyclofocal.lab.compare.slurm import build_executor, run_slurm

MOST_WORKERS = 8  # by default; each takes some 300 MB
GPUS_PER_RUN = 0.25  # by default, where there are some


class BackendName(StrEnum):
    """Names of the backends."""

    local = "local"
    ray = "ray"
    slurm = "slurm"


def backend_of(
    on: BackendName, out: Path, workers: int | None, cpus_per_run: int, gpus_per_run: float | None, slurm: list[str]
) -> Backend:
    """The backend of these options, all of them checked."""
    if on is not BackendName.local and workers is not None:
        raise typer.BadParameter("it needs --on local; a cluster chooses by --cpus-per-run.", param_hint="--workers")
    if on is not BackendName.slurm and slurm:
        raise typer.BadParameter(f"it needs --on slurm, not {on.value}.", param_hint="--slurm")
    if on is BackendName.local:
        return _local(workers, cpus_per_run, gpus_per_run)
    resources = Resources(cpus_per_run, gpus_per_run or 0.0)
    parameters = _parameters(slurm)
    with refused("--on", ModuleNotFoundError, RuntimeError):
        if on is BackendName.ray:
            load_ray()
            return partial(run_ray, resources=resources)
        build_executor(out / "slurm", resources, parameters)
        return partial(run_slurm, logs=out / "slurm", resources=resources, parameters=parameters)


def _local(workers: int | None, cpus_per_run: int, gpus_per_run: float | None) -> Backend:
    devices = gpus() if gpus_per_run != 0 else []
    if gpus_per_run and not devices:
        raise typer.BadParameter("no GPU is available; leave it out, or give 0.", param_hint="--gpus-per-run")
    resources = Resources(cpus_per_run, (gpus_per_run or GPUS_PER_RUN) if devices else 0.0)
    fitting = max(1, min(cores() // cpus_per_run, MOST_WORKERS))
    if devices:
        fitting = len(devices) * int(1 / resources.gpus)
    return partial(run_local, workers=workers or fitting, resources=resources, devices=devices)


def _parameters(slurm: list[str]) -> dict[str, str]:
    for given in slurm:
        if not all(given.partition("=")[::2]):
            raise typer.BadParameter(f"{given!r} is not KEY=VALUE, such as partition=gpu.", param_hint="--slurm")
    return dict(given.split("=", 1) for given in slurm)
