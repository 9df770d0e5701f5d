"""``cyclofocal data check``: what is there of a published long-tailed data set, and what differs from it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cyclofocal.lab.data.check import check
from cyclofocal.lab.data.errors import MissingDataError, several
from cyclofocal.lab.data.lists import list_images, read_list

PUBLISHED = {
    "places-lt": {
        "Places_LT_train.txt": "726c4871dcbf07ce2f857703bfe32e9a83ffbf52d704239f6d95c4f4f4c247f7",
        "Places_LT_val.txt": "719e3cf3766c09134ea28f56f1036c78def511ac1ed2c2532a6beef78f2439ba",
        "Places_LT_test.txt": "44eee8441c8098c59195465abede425721bc35525d75209f9433b161a6eb37bc",
    },
    "imagenet-lt": {
        "ImageNet_LT_train.txt": "",
        "ImageNet_LT_val.txt": "9af7ba688acf9532ff5845a8fb14a1e97fdc4c51ac48bc72c08ea9c3f7ff142e",
        "ImageNet_LT_test.txt": "d1590191cf8a71fada7b1aaedaa2d139a2aea93ff2f1b755319d0bd8dbaa55d5",
    },
}
"""SHA-256 of the published list files; "" where it is not known."""


def check_lists(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(PUBLISHED)}.")],
    lists: Annotated[Path, typer.Option(help="Folder of the list files.", file_okay=False)],
    images: Annotated[Path, typer.Option(help="Folder that the lists' paths begin in.", file_okay=False)],
    against: Annotated[
        Path | None, typer.Option(help="Folder of the same lists in another layout, to compare by file name and label.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read images.")] = 8,
) -> None:
    """Count images, classes, missing and unreadable files of a published data set; exit with 1 if any is wrong."""
    if name not in PUBLISHED:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(PUBLISHED)}.", param_hint="NAME")
    sound = True
    try:
        for file, digest in PUBLISHED[name].items():
            report = check(list_images(lists / file, images), workers)
            typer.echo(str(report))
            for line in compared(lists / file, digest, against and against / file):
                typer.echo(f"  {line}")
            sound = sound and report.sound
    except (MissingDataError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--lists") from None
    raise typer.Exit(0 if sound else 1)


def compared(path: Path, digest: str, other: Path | None = None) -> Iterator[str]:
    """Whether a list is the published one, in words; and in what it differs from another, layouts aside."""
    if not digest:
        yield "the published list's checksum is not known"
    elif hashlib.sha256(path.read_bytes()).hexdigest() == digest:
        yield "the list is the published one (SHA-256)"
    else:
        yield "the list is not the published file (another SHA-256): another layout, or other images"
    if other is not None:
        yield differences(path, other)


def differences(path: Path, other: Path) -> str:
    """In what two lists differ by (file name, label); folders are passed over, so that layouts can be compared.

    Raises:
        MissingDataError, DamagedDataError: of reading them.
    """
    own, others = (_pairs(file) for file in (path, other))
    alone = [
        f"{len(extra)} only in {file} ({several(sorted(extra))})"
        for file, extra in ((path, own - others), (other, others - own))
        if extra
    ]
    return "; ".join(alone) if alone else f"the same {len(own)} images and labels as {other}"


def _pairs(path: Path) -> set[tuple[str, int]]:
    """File name and label of each line; the class keeps names apart that folders share."""
    names, labels = read_list(path)
    return {(name.rpartition("/")[2], label) for name, label in zip(names, labels.tolist(), strict=True)}
