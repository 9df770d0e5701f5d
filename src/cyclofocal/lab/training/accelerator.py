"""Devices and processes of a run, by Accelerate."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training.job import RunOptions

if TYPE_CHECKING:
    from accelerate import Accelerator


def start_accelerator(recipe: Recipe, options: RunOptions, folder: Path | None = None) -> "Accelerator":
    """Choose device, precision, processes and trackers.

    Raises:
        ValueError: half precision that the device does not have, or a tracker that is not installed.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.tracking import get_available_trackers

    available = {getattr(kind, "value", kind) for kind in get_available_trackers()}
    if missing := sorted(set(options.trackers) - available):
        raise ValueError(f"tracker {', '.join(missing)} is not installed")
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    trackers = list(options.trackers) or None
    accelerator = Accelerator(mixed_precision=recipe.precision, cpu=options.cpu, log_with=trackers, project_dir=folder)
    if recipe.precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("precision is fp16, which is too slow on a CPU and not scaled there; use bf16 or no")
    if trackers:
        accelerator.init_trackers(recipe.name)
    return accelerator


def is_main_process(cpu: bool) -> bool:
    """True in the first process of a run, which alone writes files."""
    from accelerate import PartialState

    return PartialState(cpu=cpu).is_main_process


def from_main(content: Any) -> Any:
    """``content`` of the main process, in every process; the processes must have been started."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    return content if PartialState().num_processes == 1 else broadcast_object_list([content])[0]
