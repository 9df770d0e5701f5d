"""``cyclofocal compare``: train every loss at every seed of one or more experiments, and compare the losses."""

import os
import shlex
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from cyclofocal.lab.commands.backends import BackendName, backend_of
from cyclofocal.lab.commands.options import (
    METRIC_KEYS,
    Drop,
    Epochs,
    Everything,
    Group,
    Identifier,
    Images,
    KeepModels,
    Out,
    Root,
    Settings,
    Small,
    Time,
    Yes,
    all_settings,
    apply_settings,
    at_least_one,
    check_metric_kind,
    check_source,
    command_line,
    losses_of,
    make_folder,
    margin_of,
    metric_key,
    picture_path,
    refused,
    role_fields,
)
from cyclofocal.lab.commands.output import shown_warnings, warn, warn_never_focal, warn_of_images, warn_of_rows
from cyclofocal.lab.commands.plan import confirm_cpu, is_large, plan_lines
from cyclofocal.lab.commands.references import added_references, suits
from cyclofocal.lab.commands.two_stage import jobs_of_stages, stages_of
from cyclofocal.lab.compare.display import GridProgress
from cyclofocal.lab.compare.grid import (
    CHECKPOINT_SECONDS,
    Backend,
    BackendError,
    JobError,
    finished,
    grid,
    reuse,
    try_custom_losses,
)
from cyclofocal.lab.data.config import KEEL, is_table
from cyclofocal.lab.metrics import ONLY_TWO_CLASSES, default_margin, default_metric
from cyclofocal.lab.oltr.recipes import TWO_STAGES
from cyclofocal.lab.oltr.stage_recipe import TwoStages
from cyclofocal.lab.oltr.stages import task_of
from cyclofocal.lab.recipes.detection import DetectionRecipe
from cyclofocal.lab.recipes.loss import (
    DETECTION_LOSSES,
    ESTIMATORS,
    FOR_BALANCED,
    FOR_BOXES,
    FOR_IMBALANCED,
    IMBALANCED_FROM,
    LOSSES,
    LossSettings,
)
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.recipes.resolve import resolve_recipes
from cyclofocal.lab.records import RunRecord
from cyclofocal.lab.training.job import Job, RunOptions

if TYPE_CHECKING:
    from cyclofocal.lab.commands.features import FrozenFeatures


def _names(losses: Sequence[LossSettings]) -> str:
    return ", ".join(loss.name for loss in losses)


def _two_losses(names: str, boxes: bool) -> list[LossSettings]:
    """Losses of ``--losses``, two or more; none for the default."""
    found = losses_of(names, boxes) if names else []
    if len(found) == 1:
        raise typer.BadParameter(
            f"{names!r} is one loss; a comparison needs two or more, separated by commas. For one:"
            f" `cyclofocal train DATA --loss {names}`.",
            param_hint="--losses",
        )
    if found and all(loss.estimator for loss in found):
        raise typer.BadParameter(
            f"{names!r} are references alone; give a loss to compare them with, such as ce.", param_hint="--losses"
        )
    return found


def _share_of_a_gpu(share: float | None) -> float | None:
    if share is not None and not 0 <= share <= 1:
        raise typer.BadParameter(f"{share} is not in [0, 1]; a run uses one GPU at most.")
    return share


def compare(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="EXPERIMENT",
            help="Names from `cyclofocal recipes`, tables (.csv, .parquet), image folders, boxes (COCO .json, folder of"
            " Pascal VOC), keel:NAME or keel:all.",
        ),
    ],
    *,
    losses: Annotated[
        str,
        typer.Option(
            "--losses",
            "--loss",
            metavar="LOSS,LOSS,...",
            help=f"Losses, separated by commas: {_names(LOSSES)}, with settings after a colon"
            " (cyclical:gamma_hc=2,cyclical_factor=8), or your own (my_loss.py:function). The reference is ce, or else"
            f" the first. Default: {_names(FOR_IMBALANCED)} if the largest class has more than {IMBALANCED_FROM:g}"
            f" times as many samples as the smallest, otherwise {_names(FOR_BALANCED)}. Of boxes"
            f" {_names(DETECTION_LOSSES)}; default: {_names(FOR_BOXES)}.",
        ),
    ] = "",
    references: Annotated[
        bool,
        typer.Option(
            "--references/--no-references",
            help="Fit reference models too, on tables and on --features: "
            + ", ".join(entry.name for entry in ESTIMATORS)
            + "; or name some in --losses.",
        ),
    ] = True,
    seeds: Annotated[int, typer.Option(help="Number of seeds per loss: 0, 1, 2, ...", callback=at_least_one)] = 10,
    target: Annotated[str, typer.Option(metavar="COLUMN", help="Target column of a table.")] = "",
    drop: Drop = "",
    group: Group = "",
    time: Time = "",
    identifier: Identifier = "",
    folds: Annotated[int | None, typer.Option(min=2, help="Number of cross-validation folds per seed.")] = None,
    tune: Annotated[
        int | None,
        typer.Option(
            metavar="TRIALS",
            help="Tune every loss first, cross-entropy included, with this many validation trials each.",
            callback=at_least_one,
        ),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            metavar="METRIC",
            help=f"Primary metric for the verdicts: {', '.join(METRIC_KEYS)}. Default: macro_auroc (AUROC) if any"
            " experiment has two classes, otherwise balanced_accuracy; of boxes ap.",
            callback=lambda key: key and metric_key(key),
        ),
    ] = "",
    margin: Annotated[
        float | None,
        typer.Option(
            help="Margin of equivalence in the primary metric, in its unit; default: 0.5 points, or 0.005 if it is no"
            " percentage.",
            callback=margin_of,
        ),
    ] = None,
    epochs: Epochs = None,
    images: Images = None,
    features: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Frozen network whose features a head is trained on, and nothing else: the folder of a finished run of"
            " train or reproduce, a network that timm knows (resnet50.a1_in1k), or NAME=FILE for its weights in a"
            " file.",
        ),
    ] = "",
    small: Small = False,
    settings: Settings = None,
    root: Root = Path("data"),
    out: Out = Path("runs"),
    picture: Annotated[
        Path | None,
        typer.Option(help="Figure to write, .png or .svg; default: OUT/comparison.png.", callback=picture_path),
    ] = None,
    stored: Annotated[
        list[Path] | None,
        typer.Option(
            "--reuse",
            metavar="RECORDS",
            exists=True,
            help="Record files (.jsonl, .jsonl.gz) or folders whose finished runs are not repeated; repeatable.",
        ),
    ] = None,
    everything: Everything = False,
    keep_models: KeepModels = False,
    yes: Yes = False,
    on: Annotated[BackendName, typer.Option(help="Execution backend.")] = BackendName.local,
    workers: Annotated[
        int | None,
        typer.Option(help="Number of local processes; default: number of cores, at most 8.", callback=at_least_one),
    ] = None,
    cpus_per_run: Annotated[
        int,
        typer.Option(help="Number of threads per run; more than 1 can change the last digits.", callback=at_least_one),
    ] = 1,
    gpus_per_run: Annotated[
        float | None,
        typer.Option(
            help="Share of a GPU per run: 0.25 for four runs on a GPU, 0 for the CPU. Default for local runs: 0.25.",
            callback=_share_of_a_gpu,
        ),
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Slurm option for --on slurm, such as partition=gpu or time=60; repeatable."
        ),
    ] = None,
) -> None:
    """Compare losses: train each with many seeds on one or more experiments, in parallel, and test the differences.

    Runs are paired by seed. The same command resumes interrupted runs; finished runs are reused by every command. It
    stores results and predictions of the test samples; with --keep-models the models too, as `cyclofocal train` does.
    """
    given = all_settings(settings, epochs=epochs, folds=folds, image_root=images)
    if small and features:
        raise typer.BadParameter("one is of a network, the other of none; give one.", param_hint="--small, --features")
    frozen = _frozen(features, keep_models, given, root, out)
    fields = role_fields(drop, group, time, identifier) | ({"folds": folds} if folds else {})
    found = _experiments(what, target, fields, given, root, frozen, small)
    boxes = _detects(found)
    named = _two_losses(losses, boxes)
    with refused("--set", OSError):
        for experiment in found:
            recipe = experiment.second if isinstance(experiment, TwoStages) else experiment
            task_of(recipe).check(recipe)
    counts = training_counts(found, root) if not (losses and metric) or metric in ONLY_TWO_CLASSES else []
    chosen = named or (list(FOR_BOXES) if boxes else default_losses(counts))
    metric = primary_of(metric, counts, boxes)
    if tune:
        chosen = _tuned(chosen, tune, found, root)
    options = RunOptions(
        root,
        command=command_line(),
        checkpoint_seconds=CHECKPOINT_SECONDS,
        primary_metric=metric,
        margin=default_margin(metric) if margin is None else margin,
        keep_models=keep_models,
    )
    compared = [*chosen, *added_references(found, chosen, references)]
    jobs = [job for job in grid(found, compared, range(seeds), out, options) if suits(job, chosen)]
    with refused("--losses", ImportError, OSError):
        try_custom_losses(jobs)
    backend = backend_of(on, out, workers, cpus_per_run, gpus_per_run, slurm or [])
    picture = picture or out / "comparison.png"
    make_folder(out, "--out")
    make_folder(picture.parent, "--picture")
    if stored:
        _reuse(jobs, stored)
    _start(jobs, yes, on is BackendName.local, gpus_per_run == 0)
    if frozen:
        frozen.compute(jobs, gpus_per_run)
    records, failed = _run_with_progress(jobs, backend)
    if records:
        from cyclofocal.lab.commands.output import print_comparison

        of_data = {"--target": target, "--drop": drop, "--group": group, "--time": time, "--id": identifier}
        of_data |= {"--images": str(images or "")}
        plain = not (tune or frozen or folds) and len(found) == 1 and isinstance(found[0], Recipe)
        train = _train_command(what[0], of_data, epochs, small, settings or (), root) if plain else ""
        print_comparison(records, metric=metric, picture=picture, everything=everything, train=train)
    typer.echo(f"records  {out}")
    _report_failures(failed, len(jobs))


def _train_command(
    what: str, of_data: dict[str, str], epochs: int | None, small: bool, settings: Sequence[str], root: Path
) -> str:
    """Command that trains one model as the comparison did, but for its loss."""
    given = [word for option, value in of_data.items() if value for word in (option, value)]
    given += ["--small"] * small + ["--epochs", str(epochs)] * (epochs is not None)
    given += [word for setting in settings for word in ("--set", setting)]
    given += ["--root", str(root)] * (root != Path("data"))
    return shlex.join(["cyclofocal", "train", what, *given])


def _reuse(jobs: list[Job], paths: list[Path]) -> None:
    """Copy the records of finished runs into their folders, and print their number."""
    from cyclofocal.lab.report.load import read_runs

    records, problems = read_runs(paths)
    if not records:
        reason = "; ".join(problems) or "give files that end in .jsonl or .jsonl.gz, or folders of runs"
        raise typer.BadParameter(f"no record in {', '.join(map(str, paths))}: {reason}.", param_hint="--reuse")
    typer.echo(f"{reuse(jobs, records)} of {len(records)} stored runs belong to this comparison", err=True)


def _start(jobs: list[Job], yes: bool, here: bool, cpu: bool) -> None:
    """Print the plan, and ask before very long runs on this machine."""
    for line in plan_lines(jobs):
        typer.echo(line, err=True)
    if here:
        large = [job for job in jobs_of_stages(jobs, None) if is_large(job.recipe)]
        done, _ = finished(large)
        confirm_cpu([job for job in large if job not in done], yes, cpu)


def training_counts(experiments: Sequence[Recipe | TwoStages], root: Path) -> list[tuple[int, ...]]:
    """Training samples per class of the first seed of every experiment."""
    from cyclofocal.lab.training.train import load_data

    recipes = [experiment.first if isinstance(experiment, TwoStages) else experiment for experiment in experiments]
    with refused("EXPERIMENT"):
        return [tuple(load_data(recipe, root, 0).counts) for recipe in recipes]


def _detects(experiments: Sequence[Recipe | TwoStages]) -> bool:
    """True if the experiments are of boxes, False if none is.

    Raises:
        typer.BadParameter: some are, and no metric is of both.
    """
    boxes = [isinstance(experiment, DetectionRecipe) for experiment in experiments]
    if any(boxes) and not all(boxes):
        raise typer.BadParameter("boxes and classes have no metric in common; compare them apart.")
    return all(boxes)


def default_losses(counts: Sequence[Sequence[int]]) -> list[LossSettings]:
    """The losses for imbalanced data if any training samples per class are, otherwise those for balanced data."""
    imbalanced = any(max(of_classes) > IMBALANCED_FROM * min(of_classes) for of_classes in counts)
    return list(FOR_IMBALANCED if imbalanced else FOR_BALANCED)


def primary_of(given: str, counts: Sequence[Sequence[int]], boxes: bool = False) -> str:
    """Primary metric, chosen before the first run: the given one, or the default for the data.

    Raises:
        typer.BadParameter: a metric of two classes, and data of more; or one of boxes for classes, or the reverse.
    """
    check_metric_kind(given, boxes)
    if given in ONLY_TWO_CLASSES and any(len(of_classes) != 2 for of_classes in counts):
        raise typer.BadParameter(
            f"{given} is a metric of two classes, and an experiment has {max(map(len, counts))}; give another one.",
            param_hint="--metric",
        )
    return given or default_metric(map(len, counts), boxes)


def _frozen(features: str, keep_models: bool, settings: list[str], root: Path, out: Path) -> "FrozenFeatures | None":
    """The frozen network of ``--features``, if it is given."""
    if not features:
        return None
    if keep_models:
        raise typer.BadParameter(
            "a head on frozen features is no model of images; leave one out.", param_hint="--features, --keep-models"
        )
    from cyclofocal.lab.commands.features import FrozenFeatures, backbone_of

    return FrozenFeatures(backbone_of(features), settings, root, out)


def _experiments(
    what: list[str],
    target: str,
    fields: dict[str, Any],
    settings: list[str],
    root: Path,
    frozen: "FrozenFeatures | None" = None,
    small: bool = False,
) -> list[Recipe | TwoStages]:
    """Find the experiments of names separated by spaces or commas; a path may hold a comma."""
    names = [name for given in what for name in ([given] if os.path.exists(given) else given.split(","))]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise typer.BadParameter(f"{repeated[0]!r} is given {names.count(repeated[0])} times; give each once.")
    with shown_warnings(), refused("EXPERIMENT", ImportError, OSError):
        for name in names:
            check_source(name, "EXPERIMENT", root)
        return [found for name in names for found in _experiment(name, target, fields, settings, root, frozen, small)]


def _experiment(
    name: str,
    target: str,
    fields: dict[str, Any],
    settings: list[str],
    root: Path,
    frozen: "FrozenFeatures | None",
    small: bool,
) -> Sequence[Recipe | TwoStages]:
    """The recipes that a name means, or both stages of an experiment, with ``--set`` applied."""
    if name in TWO_STAGES and not (target or fields.keys() - {"folds"}):
        if frozen:
            raise ValueError(f"{name} has two stages, which train the network; give it without --features")
        if small:
            raise typer.BadParameter(f"{name} is no folder or list of images; leave it out.", param_hint="--small")
        return [stages_of(name, settings)]
    if frozen:
        return [frozen.head(recipe) for recipe in resolve_recipes(name, target, fields)]
    recipes = [apply_settings(recipe, settings, small) for recipe in resolve_recipes(name, target, fields)]
    if is_table(name, target):
        _look_for_copies(recipes, root)
    return [_pinned(recipe, root) if recipe.data.is_custom else recipe for recipe in recipes]


def _look_for_copies(tables: Sequence[Recipe], root: Path) -> None:
    """Warn of rows on both sides of a split of a user's tables."""
    from cyclofocal.lab.training.train import load_data

    for recipe in tables:
        if not recipe.data.source.startswith(KEEL):
            warn_of_rows(load_data(recipe, root, 0))


def _pinned(recipe: Recipe, root: Path) -> Recipe:
    """Fix a user's images to their digest, after one look through them."""
    from cyclofocal.lab.training.train import with_data_digest

    found, data = with_data_digest(recipe, root)
    warn_of_images(found.data, data)
    return found


def _tuned(
    losses: list[LossSettings], trials: int, found: Sequence[Recipe | TwoStages], root: Path
) -> list[LossSettings]:
    """The losses with a budget of trials each, after a check that all can be tuned on all data."""
    from cyclofocal.lab.compare.tuning import check_tuning

    tuned = [
        x if x.estimator else replace(x, name=f"{x.name}:tuned", title=f"{x.title}, tuned", trials=trials)
        for x in losses
    ]
    with refused("--tune", ImportError, OSError):
        for experiment in found:
            if isinstance(experiment, TwoStages):
                raise ValueError(f"{experiment.second.name} is a second stage; --tune is for experiments of one stage")
            for loss in tuned:
                if not loss.estimator:
                    check_tuning(experiment, loss, root)
    return tuned


def _run_with_progress(jobs: list[Job], backend: Backend) -> tuple[list[RunRecord], list[JobError]]:
    """Run the jobs; their records in order, and the failures."""
    console = Console(stderr=True, highlight=False)
    done, damaged = finished(jobs)
    for error in damaged:
        warn(f"damaged record, will run again: {error}")
    console.print(f"{len(jobs)} runs, {len(done)} of them finished before")
    missing, failed = [job for job in jobs if job not in done], list[JobError]()
    warn_never_focal((job.recipe, job.loss) for job in jobs_of_stages(missing, None))
    try:
        with closing(backend(missing)) as outcomes, GridProgress(console, jobs, done) as display:
            if missing:
                threading.Thread(target=_import_report, daemon=True).start()
            for job, outcome in outcomes:
                display.end(job, outcome)
                if isinstance(outcome, JobError):
                    failed.append(outcome)
                else:
                    done[job] = outcome
    except (BackendError, KeyboardInterrupt) as error:
        kept = len(finished(jobs)[0])
        reason = f"{error}; " if isinstance(error, BackendError) else ""
        warn(f"stopped: {reason}{kept} of {len(jobs)} runs are stored, the same command continues", "red")
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
    return [done[job] for job in jobs if job in done], failed


def _import_report() -> None:
    """Import the packages of the report while this process waits; it takes two seconds."""
    for name in ("scipy.stats", "matplotlib.backends.backend_agg"):
        import_module(name)


def _report_failures(failed: Sequence[JobError], jobs: int) -> None:
    """Print a line per failure, and exit with 1."""
    if not failed:
        return
    for error in failed:
        warn(f"failed: {error}", "red")
    warn(f"{len(failed)} of {jobs} runs failed; the same command tries them again", "red")
    raise typer.Exit(1)
