"""The grid of a comparison: independent jobs, each in a folder that ``cyclofocal reproduce`` uses as well."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from cyclofocal.lab.oltr.stage_recipe import TwoStages
from cyclofocal.lab.recipes.head import HeadRecipe
from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.records import DamagedRecordError, RunRecord, write_record
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.run_folder import DamagedRunError, RunMismatchError, lock_run, run_folder

CHECKPOINT_SECONDS = 30.0
"""Time between two checkpoints of a job in a comparison; shorter runs write none."""


@dataclass(frozen=True)
class Resources:
    """Resources of one run; they change its numbers by rounding at most.

    Attributes:
        cpus: threads, at least 1.
        gpus: part of a device, at most 1; 0 stays on the CPU.
    """

    cpus: int = 1
    gpus: float = 0.0


ONE_CORE = Resources()


class JobError(RuntimeError):
    """A failed run; the message says which and why."""


class BackendError(RuntimeError):
    """A cluster that is missing or refuses all jobs."""


Outcome = RunRecord | JobError

Backend = Callable[[Sequence[Job]], Generator[tuple[Job, Outcome], None, None]]
"""Runs jobs and yields each with its record, or with what went wrong, as they end; closing it stops the others."""


def grid(
    experiments: Iterable[Recipe | TwoStages],
    losses: Sequence[LossSettings],
    seeds: Iterable[int],
    folder: Path,
    options: RunOptions | None = None,
) -> list[Job]:
    """Every loss at every seed and fold of every experiment, seed by seed so that pairs are complete early.

    Of two stages it holds the second, whose job names that of the first.

    Args:
        experiments, losses, seeds: the sides of the grid.
        folder: of all runs; each has a subfolder.
        options: None: a checkpoint every :data:`CHECKPOINT_SECONDS`.
    """
    options = options or RunOptions(checkpoint_seconds=CHECKPOINT_SECONDS)
    folded = [fold for experiment in experiments for fold in folds(experiment)]
    return [_job(experiment, loss, seed, folder, options) for seed in seeds for experiment in folded for loss in losses]


def folds(experiment: Recipe | TwoStages) -> Sequence[Recipe | TwoStages]:
    """The recipe at each fold of its cross-validation; itself where it has none."""
    if isinstance(experiment, TwoStages):
        return [experiment]
    part = experiment.data.cross_validation
    return [experiment.with_data(fold=fold) for fold in range(part[1])] if part else [experiment]


def finished(jobs: Iterable[Job]) -> tuple[dict[Job, RunRecord], list[DamagedRecordError]]:
    """Records of the jobs that have one, and what is wrong with files that hold none (they will run again).

    A job whose folder holds the record of another run has none; :func:`run_job` says so.
    """
    records: dict[Job, RunRecord] = {}
    damaged: list[DamagedRecordError] = []
    for job in jobs:
        try:
            record, faults = job.stored()
        except (DamagedRunError, RunMismatchError):
            continue
        if record is None:
            damaged += faults
        else:
            records[job] = record
    return records, damaged


def reuse(jobs: Iterable[Job], records: Iterable[RunRecord]) -> int:
    """Write records into the folders of the jobs that they are of, if these have none; return their number."""
    by_run: dict[tuple[str, str, int], list[RunRecord]] = {}
    for record in records:
        by_run.setdefault((record.recipe["name"], record.loss["name"], record.seed), []).append(record)
    found = 0
    for job in jobs:
        same = [r for r in by_run.get((job.recipe.name, job.loss.name, job.seed), []) if job.is_run_of(r)]
        if same and not job.record_path.exists():
            write_record(same[0], job.record_path)
            found += 1
    return found


def try_custom_losses(jobs: Iterable[Job]) -> None:
    """Call every custom loss once, with the training samples per class of its data, before anything is trained.

    Raises:
        MissingDataError, DamagedDataError, ValueError: the data cannot be read, or a loss cannot be used.
    """
    from cyclofocal.lab.oltr.stages import task_of
    from cyclofocal.lab.training.train import load_data
    from cyclofocal.lab.training.train_state import try_custom_loss

    class_counts: dict[Recipe, Sequence[int]] = {}
    for job in {(job.recipe, job.loss): job for job in jobs if job.loss.file}.values():
        if job.recipe not in class_counts:
            # The labels are those of the images; features may not be there yet.
            load = load_data if isinstance(job.recipe, HeadRecipe) else task_of(job.recipe).load
            class_counts[job.recipe] = load(job.recipe, job.options.root, 0).counts
        try_custom_loss(job.recipe, job.loss, class_counts[job.recipe])


def run_job(job: Job, resources: Resources | None = None, wait: bool = True) -> RunRecord | None:
    """Train a job, after its stage 1 and its tuning, unless another process does.

    Args:
        job: of the grid, or any other.
        resources: of this machine; None leaves threads and device as they are.
        wait: for a process that runs the job already.

    Returns:
        The record, which is on disk; None where another process runs the job and ``wait`` is False.

    Raises:
        RunMismatchError, DamagedRunError: the job's folder holds another run or a damaged file.
        What training raises.
    """
    import torch

    from cyclofocal.lab.oltr.stages import task_of
    from cyclofocal.lab.training.accelerator import from_main, is_main_process
    from cyclofocal.lab.training.reference import reference_task
    from cyclofocal.lab.training.train import train

    if resources is not None:
        torch.set_num_threads(resources.cpus)
        job = replace(job, options=replace(job.options, cpu=resources.gpus == 0))
    main = is_main_process(job.options.cpu)
    with lock_run(job.folder, wait) if job.folder and main else nullcontext(True) as held:
        if not held:
            return None
        if (done := from_main(job.stored()[0] if main else None)) is not None:
            return done
        if job.stage1 is not None:
            run_job(job.stage1, resources)
        task = task_of(job.recipe)
        return train(replace(job, loss=_tuned_loss(job)), reference_task(task) if job.loss.estimator else task)


def failure(job: Job, error: BaseException) -> JobError:
    """The error of a job, in one line."""
    said = " ".join(str(error).split())
    return JobError(f"{job.title}: {type(error).__name__}{f': {said}' if said else ''}")


def _job(experiment: Recipe | TwoStages, loss: LossSettings, seed: int, folder: Path, options: RunOptions) -> Job:
    if isinstance(experiment, TwoStages):
        from cyclofocal.lab.oltr.stages import stage2_job

        return stage2_job(experiment, loss, seed, folder, options)
    return Job(experiment, loss, seed, run_folder(folder, experiment, loss, seed), options)


def _tuned_loss(job: Job) -> LossSettings:
    """The job's loss, tuned if it has trials."""
    if not job.loss.trials:
        return job.loss
    from cyclofocal.lab.compare.tuning import tune

    return tune(job)
