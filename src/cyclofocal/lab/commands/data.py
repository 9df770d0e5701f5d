"""``cyclofocal data check``: compare a data set with its lists, and the lists with the published ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cyclofocal.lab.commands.options import Images, Lists, refused
from cyclofocal.lab.commands.output import ignored_warning
from cyclofocal.lab.data.check import check_images, find_copies
from cyclofocal.lab.data.dataset import Samples
from cyclofocal.lab.data.folders import read_splits
from cyclofocal.lab.data.lists import check_same_numbers, list_images
from cyclofocal.lab.data.published import PUBLISHED, Published, list_differences, verified
from cyclofocal.lab.messages import MissingDataError


def check_data(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help=f"{', '.join(PUBLISHED)}; or your own image folder or list files, the training list first.",
        ),
    ],
    lists: Lists = None,
    images: Images = None,
    against: Annotated[
        Path | None, typer.Option(help="Other copy of the list or lists, to compare by file name and label.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of threads that read images.")] = 8,
) -> None:
    """Count images, classes, missing and unreadable files, and byte-identical images.

    The exit code is 1 if an image cannot be read, a list differs from the published one, or, in your own data, an image
    is in two splits or classes.
    """
    sound, checked = True, dict[str, Samples]()
    with refused(None, MissingDataError):
        for split, path, published in _splits(names, lists, images):
            checked[path.name if path.name not in checked else split.title] = split
            report = check_images(split, workers)
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
        if str(found := find_copies(checked, workers)):
            typer.echo(str(found))
        sound = sound and (names[0] in PUBLISHED or not found.problems)
    raise typer.Exit(0 if sound else 1)


def _splits(
    names: list[str], lists: Path | None, images: Path | None
) -> Iterator[tuple[Samples, Path, Published | None]]:
    """Yield each split, its list or folder, and the published facts about it."""
    if names[0] in PUBLISHED and len(names) == 1:
        if lists is None:
            raise typer.BadParameter(f"{names[0]} needs the folder of its list files.", param_hint="--lists")
        for file, published in PUBLISHED[names[0]].items():
            yield list_images(lists / file, images or lists), lists / file, published
        return
    if lists is not None:
        raise typer.BadParameter(f"{names[0]} is not a published data set; omit --lists.", param_hint="--lists")
    train: Samples | None = None
    for path in _own_paths(names):
        if path.is_file():
            listed = list_images(path, images or path.parent)
            train = train or listed
            check_same_numbers(train, listed)
            yield listed, path, None
        else:
            splits = read_splits(path)[1].values()
            if said := ignored_warning(path):
                typer.echo(said, err=True)
            for split in splits:
                yield split, Path(split.title), None


def _own_paths(names: list[str]) -> list[Path]:
    """Return one folder, or list files."""
    paths = [Path(name) for name in names]
    for path in paths:
        if not path.exists():
            raise typer.BadParameter(
                f"{str(path)!r} is none of {', '.join(PUBLISHED)}, and no file or folder.", param_hint="DATA"
            )
        if len(paths) > 1 and not path.is_file():
            raise typer.BadParameter(f"{path} is no list file; give one folder, or list files.", param_hint="DATA")
    return paths
