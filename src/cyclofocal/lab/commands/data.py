"""``cyclofocal data check``: compare a data set with its lists, and both with the published ones."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cyclofocal.lab.commands.options import (
    Drop,
    Group,
    Identifier,
    Images,
    Lists,
    Root,
    Time,
    check_source,
    refused,
    role_fields,
)
from cyclofocal.lab.commands.output import ignored_warning, one_line_errors
from cyclofocal.lab.data.boxes import box_splits
from cyclofocal.lab.data.check import check_images, find_copies
from cyclofocal.lab.data.check_table import check_table
from cyclofocal.lab.data.cifar import CIFAR_MD5, compare_files
from cyclofocal.lab.data.config import KEEL, BoxData, PublishedData, TableData, is_table
from cyclofocal.lab.data.dataset import Samples
from cyclofocal.lab.data.fingerprints import KNOWN, KNOWN_BOXES, compare_fingerprints, fingerprint
from cyclofocal.lab.data.folders import read_splits
from cyclofocal.lab.data.lists import check_same_numbers, list_images
from cyclofocal.lab.data.load import load, load_table
from cyclofocal.lab.data.published import PUBLISHED, Published, list_differences, verified
from cyclofocal.lab.data.splits import check_apart
from cyclofocal.lab.data.tables import SUFFIXES
from cyclofocal.lab.messages import MissingDataError, preview
from cyclofocal.lab.recipes.resolve import source_recipe
from cyclofocal.lab.recipes.tabular import FOLDS


def check_data(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help=f"{', '.join((*KNOWN, *KNOWN_BOXES, *PUBLISHED))}; your own image folder or list files, the training"
            " list first; boxes, as a COCO file (.json) or a folder of Pascal VOC; or a table, with --target.",
        ),
    ],
    target: Annotated[str, typer.Option(metavar="COLUMN", help="Target column of a table.")] = "",
    drop: Drop = "",
    group: Group = "",
    time: Time = "",
    identifier: Identifier = "",
    lists: Lists = None,
    images: Images = None,
    against: Annotated[
        Path | None, typer.Option(help="Other copy of the list or lists, to compare by file name and label.")
    ] = None,
    root: Root = Path("data"),
    data_workers: Annotated[int, typer.Option("--data-workers", min=1, help="Number of threads that read images.")] = 8,
) -> None:
    """Count images, classes, missing and unreadable files, and byte-identical images; or describe a table on one page.

    The page has the classes, the encoding and missing values of every column, identifiers, constants, columns that
    predict the target alone, and equal rows, as `compare` and `train` see them. The exit code is 1 if an image or a
    table cannot be read, a list, a file or the labels of a published data set differ from the published ones, a column
    predicts the target alone, or, in your own data, an image is in two splits or classes.
    """
    roles = role_fields(drop, group, time, identifier)
    if is_table(names[0], target) or roles or Path(names[0]).suffix.lower() in SUFFIXES:
        _check_table(names, target, roles)
    if isinstance(boxes := source_recipe(names[0]).data, BoxData):
        _check_boxes(names, replace(boxes, image_root=str(images or "")), root, data_workers)
    if names[0] in KNOWN and len(names) == 1:
        _check_known(names[0], root, data_workers, any((lists, images, against)))
    sound, checked, classes = True, dict[str, Samples](), tuple[str, ...]()
    with refused(None, MissingDataError):
        for split, path, published, named in _splits(names, lists, images):
            classes = named
            checked[path.name if path.name not in checked else split.title] = split
            report = check_images(split, data_workers)
            typer.echo(str(report))
            if len(report.missing) == report.n_images:
                typer.echo("  none of these images exists: is the list of another layout than the images?")
            sound = sound and report.sound
            if published is not None:
                as_published, said = verified(path, report, published)
                typer.echo(f"  {said}")
                sound = sound and as_published
            if against is not None and path.is_file():
                typer.echo(f"  {list_differences(path, against / path.name if against.is_dir() else against)}")
        small = [name for name, count in zip(classes, report.class_counts, strict=False) if count == 1]
        if small and len(checked) == 1:
            typer.echo(f"  too small to split into training and test, with 1 image each: {preview(small)}; add images")
        if str(found := find_copies(checked, data_workers, classes)):
            typer.echo(str(found))
        sound = sound and (names[0] in PUBLISHED or not found.problems)
    raise typer.Exit(0 if sound else 1)


def _check_table(names: list[str], target: str, roles: dict[str, Any]) -> None:
    """Print the page of a table, and exit."""
    if len(names) > 1:
        raise typer.BadParameter(f"{', '.join(names)} are {len(names)}; give one table.", param_hint="DATA")
    if not target and not names[0].startswith(KEEL):
        raise typer.BadParameter(f"{names[0]} is a table; name the column to predict, with --target COLUMN.")
    split = {"folds": FOLDS} if names[0].startswith(KEEL) else {"test_fraction": 0.2}
    with one_line_errors(Path(names[0])):
        data = TableData(names[0], target=target, validation_fraction=0.2, **split, **roles)
        report = check_table(load_table(data), data)
    typer.echo(str(report))
    raise typer.Exit(1 if report.leaks else 0)


def _check_boxes(names: list[str], data: BoxData, root: Path, workers: int) -> None:
    """Count the images and boxes of each split, read every image, and exit."""
    if len(names) > 1:
        raise typer.BadParameter(f"{', '.join(names)} are {len(names)}; give one.", param_hint="DATA")
    published = KNOWN_BOXES.get(data.source, {})
    sound = True
    with refused("DATA", OSError):
        title, classes, _, splits = box_splits(replace(data, bad_boxes="drop" if published else "refuse"), root)
        check_apart(title, splits)
    for name, images in splits.items():
        counts = dict(zip(classes, images.class_counts(len(classes)), strict=True))
        report = check_images(images, workers)
        said = f"{images.title}: {len(images)} images, {sum(counts.values())} boxes"
        typer.echo(f"{said} ({', '.join(f'{kind} {count}' for kind, count in counts.items())})")
        if broken := [*report.missing, *report.unreadable]:
            typer.echo(f"  {len(broken)} cannot be read: {preview(broken)}")
        agrees = not published or published[name] == (len(images), counts)
        if published:
            typer.echo(f"  {'the' if agrees else 'not the'} published number of images and boxes")
        hollow = [kind for kind, count in counts.items() if not count and name == "train"]
        if hollow:
            typer.echo(f"  no box of {preview(hollow)}; annotate some, or remove the category")
        sound = sound and agrees and not broken and not hollow
    unlabelled = {name: replace(images, labels=np.zeros_like(images.labels)) for name, images in splits.items()}
    copies = find_copies(unlabelled, workers)  # an image of boxes has no class
    if str(copies):
        typer.echo(str(copies))
    raise typer.Exit(0 if sound and not copies.shared else 1)


def _check_known(name: str, root: Path, workers: int, has_lists: bool) -> None:
    """Compare the splits of a data set below ``root`` with the known ones, and exit."""
    if has_lists:
        raise typer.BadParameter(f"{name} has no list files.", param_hint="--lists, --images, --against")
    check_source(name, "NAME", root)
    sound = True
    try:
        splits = load(PublishedData(name), root).splits
        if name in CIFAR_MD5:
            sound, said = compare_files(name, root)
            typer.echo(said)
        for split, known in KNOWN[name].items():
            images = splits[split]
            assert images is not None
            report = check_images(replace(images, title=f"{name} {split}"), workers)
            agrees, said = compare_fingerprints(fingerprint(images), known)
            typer.echo(f"{report}\n  {said}")
            sound = sound and report.sound and agrees
    except (MissingDataError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    raise typer.Exit(0 if sound else 1)


def _splits(
    names: list[str], lists: Path | None, images: Path | None
) -> Iterator[tuple[Samples, Path, Published | None, tuple[str, ...]]]:
    """Yield each split, its list or folder, the published facts about it, and the names of the classes of a folder."""
    if names[0] in PUBLISHED and len(names) == 1:
        if lists is None:
            raise typer.BadParameter(f"{names[0]} needs the folder of its list files.", param_hint="--lists")
        for file, published in PUBLISHED[names[0]].items():
            yield list_images(lists / file, images or lists), lists / file, published, ()
        return
    if lists is not None:
        raise typer.BadParameter(f"{names[0]} is not a published data set; omit --lists.", param_hint="--lists")
    train: Samples | None = None
    for path in _own_paths(names):
        if path.is_file():
            listed = list_images(path, images or path.parent)
            train = train or listed
            check_same_numbers(train, listed)
            yield listed, path, None, ()
        else:
            classes, splits = read_splits(path)
            if said := ignored_warning(path):
                typer.echo(said, err=True)
            for split in splits.values():
                yield split, Path(split.title), None, classes


def _own_paths(names: list[str]) -> list[Path]:
    """Return one folder, or list files."""
    paths = [Path(name) for name in names]
    for path in paths:
        if not path.exists():
            raise typer.BadParameter(
                f"{str(path)!r} is none of {', '.join((*KNOWN, *PUBLISHED))}, and no file or folder.", param_hint="DATA"
            )
        if len(paths) > 1 and not path.is_file():
            raise typer.BadParameter(f"{path} is no list file; give one folder, or list files.", param_hint="DATA")
    return paths
