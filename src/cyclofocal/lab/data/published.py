"""Published long-tailed lists by their digests, and comparisons of list files."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cyclofocal.lab.data.check import CheckReport
from cyclofocal.lab.data.lists import read_list
from cyclofocal.lab.messages import preview


@dataclass(frozen=True)
class Published:
    """Size and digests of a published list.

    Attributes:
        n_images, n_classes: number of images and of classes.
        sha256: SHA-256 of the file.
        content: SHA-256 of its sorted lines ``name label``, with file names without folders, so that it is the same
            in every layout; "" if it is not known.
    """

    n_images: int
    n_classes: int
    sha256: str
    content: str = ""


PUBLISHED = {
    "places-lt": {
        "Places_LT_train.txt": Published(
            62500,
            365,
            "726c4871dcbf07ce2f857703bfe32e9a83ffbf52d704239f6d95c4f4f4c247f7",
            "f9f878cafef77c00d2031c2856af59800fa1553dbf167d4eabd2d4d0d7e0ad58",
        ),
        "Places_LT_val.txt": Published(
            7300,
            365,
            "719e3cf3766c09134ea28f56f1036c78def511ac1ed2c2532a6beef78f2439ba",
            "4c7abc922b7deb81727d56ce855d17855fac3bca268c53dda17a78f4bc3d4b4f",
        ),
        "Places_LT_test.txt": Published(
            36500,
            365,
            "44eee8441c8098c59195465abede425721bc35525d75209f9433b161a6eb37bc",
            "81ae0b5c57f5e472a85e43d598682d5bba2c0a77bc9678211ef2a1f1592b87ba",
        ),
    },
    "imagenet-lt": {
        "ImageNet_LT_train.txt": Published(
            115846, 1000, "efdbdad4f050237c310b2f354cf95a8b1d7c8d57a63c4ea4bb6bf2bcb012f37f"
        ),
        "ImageNet_LT_val.txt": Published(
            20000,
            1000,
            "9af7ba688acf9532ff5845a8fb14a1e97fdc4c51ac48bc72c08ea9c3f7ff142e",
            "2502971071372637341c92d6ed4858bdfb9f9dc0df5c64c419a6ea0e93837293",
        ),
        "ImageNet_LT_test.txt": Published(
            50000,
            1000,
            "d1590191cf8a71fada7b1aaedaa2d139a2aea93ff2f1b755319d0bd8dbaa55d5",
            "4138c0cd92d2dffea9353a9339c9f352361b7c6c267d2ff989b366f154188257",
        ),
    },
}
"""Published lists by data set and by file name."""


def verified(path: Path, report: CheckReport, published: Published) -> tuple[bool, str]:
    """Compare a list with the published one; returns if they agree, and a sentence that says why."""
    if hashlib.sha256(path.read_bytes()).hexdigest() == published.sha256:
        return True, "the published list (SHA-256)"
    if published.content and content_digest(path) == published.content:
        return True, "another layout of the published list: the same file names and labels"
    counted = f"{published.n_images} images of {published.n_classes} classes"
    if not published.content and (report.n_images, len(report.class_counts)) == (
        published.n_images,
        published.n_classes,
    ):
        return False, f"not the published file (another SHA-256), though it has {counted} as well"
    return False, f"not the published list: another SHA-256, other file names or labels; that one has {counted}"


def content_digest(path: Path) -> str:
    """Hash the content of a list, independent of its layout and order.

    Raises:
        MissingDataError, DamagedDataError: the list cannot be read.
    """
    lines = sorted(f"{name} {label}\n" for name, label in _pairs(path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def list_differences(path: Path, other: Path) -> str:
    """Describe the differences of two lists by (file name, label); folders are ignored, so that layouts may differ.

    Raises:
        MissingDataError, DamagedDataError: a list cannot be read.
    """
    first, second = (set(_pairs(file)) for file in (path, other))
    alone = [
        f"{len(extra)} only in {file} ({preview([f'{name} {label}' for name, label in sorted(extra)])})"
        for file, extra in ((path, first - second), (other, second - first))
        if extra
    ]
    return "; ".join(alone) if alone else f"the same {len(first)} images and labels as {other}"


def _pairs(path: Path) -> list[tuple[str, int]]:
    """Read file name and label of each line; the label distinguishes equal names of different folders."""
    names, labels = read_list(path)
    return [(name.rpartition("/")[2], label) for name, label in zip(names, labels.tolist(), strict=True)]
