"""``cyclofocal reproduce`` and ``cyclofocal train``: runs that resume after any interruption."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cyclofocal.lab.commands.options import (
    Cpu,
    DataWorkers,
    Drop,
    Epochs,
    Group,
    Identifier,
    Images,
    KeepModels,
    Lists,
    Out,
    Root,
    Settings,
    Small,
    Time,
    Yes,
    all_settings,
    apply_settings,
    at_least_one,
    check_choice,
    check_source,
    command_line,
    experiment_name,
    make_folder,
    recipe_or_path,
    role_fields,
    trained_losses,
)
from cyclofocal.lab.commands.output import (
    is_main,
    one_line_errors,
    shown_warnings,
    warn_never_focal,
    warn_of_images,
    warn_of_rows,
)
from cyclofocal.lab.commands.plan import confirm_cpu, plan_lines, time_left
from cyclofocal.lab.commands.two_stage import check_stage1, jobs_of_stages, stage_line, stages_of, warn_of_images_of
from cyclofocal.lab.compare.grid import finished, grid, run_job, try_custom_losses
from cyclofocal.lab.data.config import is_table
from cyclofocal.lab.metrics import Metric, metrics_of
from cyclofocal.lab.oltr.recipes import TWO_STAGES
from cyclofocal.lab.oltr.stage_recipe import StageRecipe
from cyclofocal.lab.recipes.catalogue import RECIPES
from cyclofocal.lab.recipes.detection import DetectionRecipe
from cyclofocal.lab.recipes.loss import DETECTION_LOSSES, LOSSES
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.recipes.resolve import resolve_recipes, source_recipe
from cyclofocal.lab.records import VALIDATION_LOSS, RunRecord, best_epoch
from cyclofocal.lab.training.job import Job, RunOptions

TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard logs to the folder of the run.")]
Trackers = Annotated[
    list[str] | None,
    typer.Option(
        "--tracker",
        metavar="TRACKER",
        help="Experiment tracker supported by Accelerate, such as wandb or mlflow; repeatable.",
    ),
]


def reproduce(
    name: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Name from `cyclofocal recipes`.", callback=experiment_name)
    ],
    *,
    losses: Annotated[
        str,
        typer.Option(
            "--losses",
            "--loss",
            metavar="LOSS,LOSS,...",
            help=f"Losses, separated by commas: {', '.join(entry.name for entry in LOSSES)}; of boxes"
            f" {', '.join(entry.name for entry in DETECTION_LOSSES)}. Default: ce,cyclical; of boxes focal,cyclical.",
        ),
    ] = "",
    seeds: Annotated[int, typer.Option(help="Number of seeds per loss: 0, 1, 2, ...", callback=at_least_one)] = 1,
    stage: Annotated[
        int | None, typer.Option(min=1, max=2, help="Run only stage 1 or 2 of a two-stage experiment; default: both.")
    ] = None,
    lists: Lists = None,
    images: Images = None,
    epochs: Epochs = None,
    settings: Settings = None,
    root: Root = Path("data"),
    out: Out = Path("runs"),
    data_workers: DataWorkers = 0,
    cpu: Cpu = False,
    tensorboard: TensorBoard = False,
    tracker: Trackers = None,
    yes: Yes = False,
    keep_models: KeepModels = True,
) -> None:
    """Reproduce one recipe with one or more losses and seeds, one run after the other, and keep the weights.

    With two or more losses it ends with their comparison; for many seeds, several recipes or your own tables use
    `cyclofocal compare`. The same command resumes an interrupted run and skips finished ones. Under `accelerate launch`
    or torchrun every run uses all their processes.
    """
    options = RunOptions(
        root, data_workers, cpu, True, _trackers(tensorboard, tracker), command_line(), keep_models=keep_models
    )
    if name not in TWO_STAGES:
        if stage is not None or lists is not None or images is not None:
            raise typer.BadParameter(f"{name} has one stage and no lists.", param_hint="--stage, --lists, --images")
        recipe = apply_settings(RECIPES[name](), all_settings(settings, epochs=epochs))
        boxes = isinstance(recipe, DetectionRecipe)
        chosen = trained_losses(losses or ("focal,cyclical" if boxes else "ce,cyclical"), boxes)
        _run_all(grid([recipe], chosen, range(seeds), out, options), out, yes)
        return
    stages = stages_of(name, all_settings(settings, epochs=epochs), lists, images)
    chosen = trained_losses(losses or "ce,cyclical")
    jobs = jobs_of_stages(grid([stages], chosen, range(seeds), out, options), stage)
    with one_line_errors(out):
        warn_of_images_of(stages, root)
        if stage == 2:
            check_stage1(jobs)
    _run_all(jobs, out, yes)


def train_model(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="Name from `cyclofocal recipes`, a table (.csv, .parquet) or another source as of --data.",
            callback=recipe_or_path,
        ),
    ] = None,
    *,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Custom data: a folder of images (train/ and test/ or val/, or classes and --set test_fraction=0.2),"
            " a list file or COCO file of boxes (and --images, --set validation_list=, test_list=), a folder of Pascal"
            " VOC, a table (and --set target=COLUMN),"
            " keel:NAME, torch/, hfds/, wds/ or tfds/NAME.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Model: one of cyclofocal's, or any name that timm knows."),
    ] = None,
    drop: Drop = "",
    group: Group = "",
    time: Time = "",
    identifier: Identifier = "",
    loss: Annotated[
        str,
        typer.Option(
            "--loss",
            "--losses",
            metavar="LOSS",
            help=f"Loss, one of {', '.join(entry.name for entry in LOSSES)}; of boxes"
            f" {', '.join(entry.name for entry in DETECTION_LOSSES)}. Default: cyclical.",
        ),
    ] = "cyclical",
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed for split, initialisation, data order and augmentation.")
    ] = 0,
    epochs: Epochs = None,
    target: Annotated[str, typer.Option(metavar="COLUMN", help="Target column of a table.")] = "",
    images: Images = None,
    small: Small = False,
    settings: Settings = None,
    root: Root = Path("data"),
    out: Out = Path("runs"),
    data_workers: DataWorkers = 0,
    cpu: Cpu = False,
    tensorboard: TensorBoard = False,
    tracker: Trackers = None,
    yes: Yes = False,
    keep_models: KeepModels = True,
    all_data: Annotated[
        bool, typer.Option("--all-data", help="Train on the test samples too, for a last model; nothing is evaluated.")
    ] = False,
) -> None:
    """Train one model with one loss and one seed, on the data of a recipe or your own, and keep its weights.

    It is evaluated once, after the last epoch. The same command resumes an interrupted run.
    """
    if name is not None and name not in RECIPES and data is None:
        name, data = None, name
    if (name is None) == (data is None):
        raise typer.BadParameter("give either the name of a recipe or --data, and not both.", param_hint="RECIPE")
    roles = role_fields(drop, group, time, identifier)
    if roles and data is None:
        raise typer.BadParameter(f"{name} is no table; omit them.", param_hint="--drop, --group, --time, --id")
    if all_data and not keep_models:
        raise typer.BadParameter("a model of all data is not evaluated; it must be stored.", param_hint="--all-data")
    options = RunOptions(
        root, data_workers, cpu, True, _trackers(tensorboard, tracker), command_line(), keep_models=keep_models
    )
    given = [*([f"target={target}"] if target else []), *(settings or [])]
    settings = all_settings(given, epochs=epochs, image_root=images)
    check_source(data or name or "", "--data" if data else "RECIPE", root)
    recipe = _recipe_of(data, settings, roles) if data is not None else RECIPES[name or ""]()
    recipe = apply_settings(recipe, settings, small)
    losses = trained_losses(loss, isinstance(recipe, DetectionRecipe), "--loss")
    if model is not None:
        gives_width = any(setting.startswith("width=") for setting in settings)
        recipe = replace(recipe, model=model, width=recipe.width if gives_width else 0)
    if data is not None:
        from cyclofocal.lab.training.train import with_data_digest

        with one_line_errors(out):
            recipe, found = with_data_digest(recipe, root)
            if found.train.n_features:
                warn_of_rows(found)
            else:
                warn_of_images(recipe.data, found)
    jobs = grid([recipe], losses, [seed], out, options)
    _run_all([_on_all_data(job) for job in jobs[:1]] if all_data else jobs, out, yes)


def _on_all_data(job: Job) -> Job:
    assert job.folder is not None
    return replace(job, all_data=True, folder=job.folder.with_name(f"all-data-{job.folder.name}"))


def _run_all(jobs: list[Job], out: Path, yes: bool) -> None:
    """Run the jobs one after the other, then compare their losses; report what goes wrong in one line."""
    make_folder(out, "--out")
    done, damaged = finished(jobs)
    if is_main():
        for error in damaged:
            typer.echo(f"damaged record, will run again: {error}", err=True)
    missing = [job for job in jobs if job not in done]
    if is_main() and missing:
        for line in plan_lines(jobs):
            typer.echo(line, err=True)
        confirm_cpu(missing, yes, jobs[0].options.cpu)
    warn_never_focal((job.recipe, job.loss) for job in missing)
    with one_line_errors(out):
        try_custom_losses(jobs)
    records = dict[Job, RunRecord]()
    for job in jobs:
        assert job.folder is not None
        with one_line_errors(job.folder):
            record = run_job(job)
        assert record is not None
        records[job] = record
        if is_main():
            line = stage_line(record) if isinstance(job.recipe, StageRecipe) else _result_line(record, job.folder)
            typer.echo(line + (" (ended before, not run again)" if job in done else ""))
            _print_time_left(missing, records)
    shown = [record for job, record in records.items() if job.recipe.name == jobs[-1].recipe.name]  # of the last stage
    if len({record.loss["name"] for record in shown}) > 1 and is_main():
        from cyclofocal.lab.commands.output import print_comparison

        print_comparison(shown)


def _print_time_left(missing: list[Job], records: dict[Job, RunRecord]) -> None:
    """Print the time of the runs that are left, once the first of this command has ended."""
    ended = [job for job in missing if job in records]
    if len(ended) == 1 and (said := time_left([records[ended[0]].seconds], len(missing) - 1)):
        typer.echo(said, err=True)


def _recipe_of(data: str, settings: list[str], roles: dict[str, Any]) -> Recipe:
    """The recipe of a user's images, or of a table whose target is among the settings."""
    target = next((setting.partition("=")[2] for setting in settings if setting.startswith("target=")), "")
    if not is_table(data, target) and not roles:
        return source_recipe(data)
    with one_line_errors(Path(data)), shown_warnings():
        found = resolve_recipes(data, target, roles)
    if len(found) > 1:
        raise typer.BadParameter(f"{data} is {len(found)} tables; give the name of one.", param_hint="--data")
    return found[0]


def _result_line(record: RunRecord, folder: Path) -> str:
    if not record.metrics:
        return (
            f"{record.loss['title']}, seed {record.seed}: {sum(record.train_counts)} samples trained on,"
            f" {record.validation_samples} for validation, not evaluated, {record.seconds:.0f} s, {folder}"
        )
    rarer = "the rarer class" if len(record.train_counts) == 2 else ""
    known = {metric.key: metric for metric in metrics_of(rarer, record.is_detection)}
    shown = dict.fromkeys((record.primary_metric, "accuracy", "nll", "ece", "ap50", "rarest_ap"))
    said = [_value(known[key], record.metrics.get(key)) for key in shown if key in known]
    if VALIDATION_LOSS in record.epochs[-1]:
        said.append(f"epoch {best_epoch(record.epochs) + 1} of {len(record.epochs)}")
    return f"{record.loss['title']}, seed {record.seed}: {', '.join(said)}, {record.seconds:.0f} s, {folder}"


def _value(metric: Metric, value: float | None) -> str:
    """Short title and value of a metric, as "ECE 4.12 %"."""
    text = "none" if value is None else f"{100 * value:.2f} %" if metric.percent else f"{value:.4f}"
    return f"{metric.short_title} {text}"


def _trackers(tensorboard: bool, others: list[str] | None) -> tuple[str, ...]:
    """Names of the trackers; refuse an unknown one."""
    chosen = (*(["tensorboard"] if tensorboard else []), *(others or []))
    if chosen:
        from accelerate.utils import LoggerType

        allowed = [kind.value for kind in LoggerType if kind.value != "all"]
        for name in chosen:
            check_choice(name, allowed, "tracker")
    return chosen
