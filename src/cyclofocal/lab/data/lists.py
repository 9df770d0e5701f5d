"""List files, ``relative/path.jpg label`` per line, as ImageNet-LT and Places-LT are published."""

import os.path
from pathlib import Path

import numpy as np

from cyclofocal.lab.data.config import ListData, path_of
from cyclofocal.lab.data.dataset import DataSet, Labels, Samples, on_demand
from cyclofocal.lab.data.files import Files, files
from cyclofocal.lab.data.splits import LABEL_DIGITS, make_splits
from cyclofocal.lab.messages import DamagedDataError, MissingDataError, MissingImageError, preview

COMMA_HINT = (
    "; a list has no header and no commas: write 'folder/name.jpg 0' on each line, or name the column of a table that"
    " is to be predicted, as target"
)


def read_lists(data: ListData) -> DataSet:
    """Read the data set of list files; the training list's labels give the number of classes.

    Without a test list the validation list is the test set, and without both a ``test_fraction`` of every class.

    Raises:
        MissingDataError: no such list or folder.
        MissingImageError: a listed image is not there; several are named, with a count.
        DamagedDataError: a line that is not ``path label``.
        ValueError: a class without training image, a label beyond the classes, lists that number the classes otherwise.
    """
    train_list = path_of(data.source)
    root = Path(data.image_root) if data.image_root else train_list.parent
    train, validation, test = (
        list_images(Path(path), root) if path else None for path in (train_list, data.validation_list, data.test_list)
    )
    assert train is not None
    data_set = make_splits(str(train_list), _class_names(train), train, validation, test, data.test_fraction)
    if not root.is_dir():
        raise MissingDataError(f"{root}: no such folder; image_root must hold the images that {train_list} lists")
    for images in (train, validation, test):
        if images is not None:
            check_same_numbers(train, images)
            check_present(images)
    return data_set


def list_images(path: Path, root: Path) -> Samples:
    """List the images of one list file without opening any; see :func:`check_present`.

    Raises:
        MissingDataError: no such list.
        DamagedDataError: a line that is not ``path label``, or no line at all.
    """
    names, labels = read_list(path)
    return on_demand(files(root, names), labels, str(path))


def read_list(path: Path) -> tuple[list[str], Labels]:
    """Read relative paths and labels of a list file, in its order; paths may contain spaces.

    Raises:
        MissingDataError: no such list.
        DamagedDataError: a line that is not ``path label``, no line at all, or an image with two labels, however its
            path is written. Blank lines at the end are ignored.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "train.txt"
        >>> _ = path.write_text("train/airfield/00004851.jpg 0\\ntrain/attic/00001417.jpg 1\\n")
        >>> read_list(path)
        (['train/airfield/00004851.jpg', 'train/attic/00001417.jpg'], array([0, 1]))
    """
    if not path.is_file():
        raise MissingDataError(f"{path}: no such list file")
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise DamagedDataError(f"{path}: not a text file ({error})") from error
    pairs = [line.rsplit(maxsplit=1) for line in lines]
    wrong = [i for i, pair in enumerate(pairs, start=1) if len(pair) != 2 or not _is_label(pair[1])]
    if wrong or not lines:
        where = f"{len(wrong)} lines are not 'relative/path label': line {preview(wrong)}" if lines else "it is empty"
        has_commas = any("," in lines[i - 1] for i in wrong)
        raise DamagedDataError(f"{path}: {where}{COMMA_HINT if has_commas else ''}")
    _check_one_label_each(path, pairs)
    return [name for name, _ in pairs], np.array([label for _, label in pairs], dtype=np.int64)


def check_present(images: Samples, remedy: str = "; is the list of another layout than the images?") -> None:
    """Refuse listed images that are not on disk, before any training; no image is opened.

    Args:
        images: listed images.
        remedy: end of the message if none is there.

    Raises:
        MissingImageError: names some of them, with a count.
    """
    listed = _files(images)
    absent = listed.missing(images.positions)
    if absent:
        hint = remedy if len(absent) == len(images) else ""
        raise MissingImageError(
            f"{images.title}: {len(absent)} of {len(images)} listed images are not in {listed.root}:"
            f" {preview(absent)}{hint}"
        )


def check_same_numbers(train: Samples, other: Samples) -> None:
    """Refuse a list that gives a class another label than the training list; classes are known by their folders.

    Raises:
        ValueError: names the class and both labels.
    """
    names = _folders_of_classes(train) or ()
    common = os.path.commonpath(names) if names else ""
    label_of = {os.path.relpath(name, common or "."): label for label, name in enumerate(names)}
    for path, label in zip(_names(other), other.labels.tolist(), strict=True):
        parts = os.path.normpath(path).split("/")[:-1]
        below = ("/".join(parts[start:]) for start in range(len(parts)))
        found = [folder for folder in below if folder in label_of]
        if found and label not in [label_of[folder] for folder in found]:
            raise ValueError(
                f"{other.title}: the label of class {found[0]} is {label} ({path}), but {label_of[found[0]]} in"
                f" {train.title}; all lists must number the classes alike"
            )


def _files(images: Samples) -> Files:
    if not isinstance(images.reader, Files):
        raise TypeError(f"{images.title}: these images are not single files")
    return images.reader


def _is_label(text: str) -> bool:
    return text.isascii() and text.removeprefix("-").isdecimal() and len(text) <= LABEL_DIGITS


def _check_one_label_each(path: Path, pairs: list[list[str]]) -> None:
    label_of: dict[str, int] = {}
    torn = [name for name, label in pairs if label_of.setdefault(os.path.normpath(name), int(label)) != int(label)]
    if torn:
        raise DamagedDataError(f"{path}: {len(torn)} images are listed again with another label: {preview(torn)}")


def _class_names(train: Samples) -> tuple[str, ...]:
    """Name classes by their folders, without the common part, if each class has one folder; else by their labels."""
    count = int(train.labels.max()) + 1
    if count > len(train):
        raise ValueError(f"{train.title}: label {count - 1}, but only {len(train)} images; some class has none")
    if train.labels.min() < 0:
        raise ValueError(f"{train.title}: label {train.labels.min()}; labels of known classes count from 0")
    return _folders_of_classes(train) or tuple(map(str, range(count)))


def _folders_of_classes(train: Samples) -> tuple[str, ...] | None:
    """List the folder of each class, without the part common to all; None unless each class has a single one."""
    count = int(train.labels.max()) + 1
    if train.labels.min() < 0 or count > len(train):
        return None
    folders: list[set[str]] = [set() for _ in range(count)]
    for path, label in zip(_names(train), train.labels.tolist(), strict=True):
        folders[label].add(os.path.normpath(path).rpartition("/")[0])
    names = [next(iter(found)) if len(found) == 1 else "" for found in folders]
    if all("/" in name for name in names):
        names = [name.partition("/")[2] for name in names]
    return tuple(names) if all(names) and len(set(names)) == count else None


def _names(images: Samples) -> list[str]:
    """Relative paths of listed images, in their order."""
    paths = _files(images).paths[images.positions]
    return [path.decode(errors="replace") for path in paths.tolist()]
