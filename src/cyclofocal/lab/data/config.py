"""Data configurations: one class per kind of source, and the flat fields that settings and records have."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from cyclofocal.lab.data import subsets
from cyclofocal.ranges import check_at_least

PREFIXES = ("torch/", "hfds/", "tfds/")
"""Prefixes of data sets that timm reads."""

KEEL = "keel:"
"""Prefix of the tables of the KEEL repository."""

VOC = "voc:"
"""Prefix of a folder of Pascal VOC annotations."""

BOX_SOURCES = ("bccd", "digit-scenes")
"""Data sets of boxes that are found, or generated, by their names."""

SHARDS = "wds/"
"""Prefix of a folder of WebDataset shards below the folder of data sets."""

NAMED_SOURCES = (
    "digits",
    "fashion-mnist",
    "cifar10",
    "cifar100",
    "tiny-imagenet-lt",
    "plankton",
    "gtsrb",
    "imagenet",
)
"""Data sets that are found by their names."""


@dataclass(frozen=True)
class DataConfig:
    """A source of samples and how its splits are made; immutable, comparable and hashable.

    Attributes:
        source: name or path.
        digest: expected digest of the content; "" accepts any. See :func:`~cyclofocal.lab.data.load.load`.

    Raises:
        ValueError: a value out of its range, or two that contradict each other.
    """

    source: str
    digest: str = ""

    kind: ClassVar[str]
    validation_field: ClassVar[str] = "validation_images"

    def __post_init__(self) -> None:
        check_ranges(vars(self))

    @property
    def asks_for_validation(self) -> bool:
        """True if a setting asks for a validation set; a source may have one without being asked."""
        return any(getattr(self, name, None) for name in (self.validation_field, "validation_list"))

    @property
    def draws_test_set(self) -> bool:
        """True if each seed has its own test set; otherwise all seeds share one."""
        return False

    @property
    def is_custom(self) -> bool:
        """True for images of the user, whose files and labels are not known before they are read."""
        own_boxes = isinstance(self, BoxData) and self.source not in BOX_SOURCES
        return own_boxes or isinstance(self, FolderData | ListData | TimmData)

    @property
    def cross_validation(self) -> tuple[int, int] | None:
        """Fold and number of folds; None without cross-validation."""
        return None

    def flat(self) -> dict[str, Any]:
        """Fields of all kinds of sources; those that this kind does not have are at their defaults.

        Those of :data:`LATER_FIELDS` are left out at their defaults.
        """
        content = {"source": self.source, **DEFAULTS, **asdict(self)}
        return {name: value for name, value in content.items() if name not in LATER_FIELDS or value != DEFAULTS[name]}


@dataclass(frozen=True)
class ImageData(DataConfig):
    """Images, all for training or a subset of them.

    Attributes:
        subset: "" for all, a name of :data:`~cyclofocal.lab.data.subsets.SUBSETS`.
        imbalance: head class to tail class of "long-tailed", at least 1.
        head_images: training images of the head class of "long-tailed"; 0 takes the mean number per class.
        validation_images: number of validation images, balanced over classes and drawn by a fixed seed from images
            that the subset leaves out, or from the subset where it leaves none; 0 takes what the source has.
    """

    subset: str = ""
    imbalance: float = 1.0
    head_images: int = 0
    validation_images: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subset and self.subset not in subsets.SUBSETS:
            raise ValueError(f"subset is {self.subset!r}; it must be '' or one of {', '.join(subsets.SUBSETS)}")
        if self.subset != "long-tailed" and (self.imbalance != 1 or self.head_images):
            raise ValueError(
                f"imbalance is {self.imbalance} and head_images is {self.head_images}, but subset is {self.subset!r};"
                " they are for 'long-tailed' only, and must be 1 and 0 otherwise"
            )


@dataclass(frozen=True)
class PublishedData(ImageData):
    """A data set of :data:`NAMED_SOURCES`.

    Attributes:
        test_per_class: test images to draw from every class of the digits; 0 for other data sets.
    """

    test_per_class: int = 0

    kind: ClassVar[str] = "a published data set"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source == "digits":
            if self.subset == "long-tailed":
                check_at_least("head_images", self.head_images, remedy=" for the long-tailed digits")
        elif self.test_per_class:
            raise ValueError(
                f"test_per_class is {self.test_per_class}, but only digits have their test set drawn; it must be 0"
            )

    @property
    def draws_test_set(self) -> bool:
        return self.source == "digits"


@dataclass(frozen=True)
class FolderData(ImageData):
    """A folder of images or of WebDataset shards: a path, "path:PATH", or "wds/FOLDER" below the root.

    Attributes:
        test_fraction: part of every class for the test set where the folder has none, in (0, 1); else 0.
    """

    test_fraction: float = 0.0

    kind: ClassVar[str] = "a folder"


@dataclass(frozen=True)
class ListData(ImageData):
    """A list file of training images: a path, or "path:PATH".

    Attributes:
        image_root: folder of the listed paths; "" is the folder of the list.
        validation_list, test_list: further list files of the same classes; "": none.
        test_fraction: part of every class for the test set where there is no further list, in (0, 1); else 0.
    """

    image_root: str = ""
    validation_list: str = ""
    test_list: str = ""
    test_fraction: float = 0.0

    kind: ClassVar[str] = "a list file"


@dataclass(frozen=True)
class TimmData(ImageData):
    """A data set that timm reads: "torch/NAME", "hfds/NAME" or "tfds/NAME".

    Attributes:
        test_fraction: part of every class for the test set where the source has none, in (0, 1); else 0.
        image_key, label_key: fields of image and label of "hfds/" and "tfds/".
    """

    test_fraction: float = 0.0
    image_key: str = "image"
    label_key: str = "label"

    kind: ClassVar[str] = "a data set of another library"


@dataclass(frozen=True)
class TableData(DataConfig):
    """A table: a .csv or .parquet file, or "keel:NAME".

    Attributes:
        target: column of the classes; "" for KEEL, whose files name it.
        folds, fold: number of folds of a stratified cross-validation, and the one that is the test set; 0: none.
        test_fraction: part of every class for the test set without cross-validation, in (0, 1).
        validation_fraction: part of every class of the rest for validation, in [0, 1).
        drop_columns: columns that are left out.
        group_column: column whose rows of equal value are always in the same part; the fractions are then those of the
            groups. It is no feature.
        time_column: column of dates or numbers; the latest rows are the test set, and those before them are for
            validation, by the fractions of all rows. It is no feature.
        id_column: column that names the rows. It is no feature.
    """

    target: str = ""
    folds: int = 0
    fold: int = 0
    test_fraction: float = 0.0
    validation_fraction: float = 0.0
    drop_columns: tuple[str, ...] = ()
    group_column: str = ""
    time_column: str = ""
    id_column: str = ""

    kind: ClassVar[str] = "a table"
    validation_field: ClassVar[str] = "validation_fraction"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {option: value for name, option in ROLES.items() if (value := getattr(self, name))}
        if given and self.source.startswith(KEEL):
            said = ", ".join(f"{name} is {value!r}" for name, value in given.items())
            raise ValueError(f"{said}, but {self.source} is split as published; omit it")
        if self.time_column and self.folds:
            raise ValueError(
                f"--time is {self.time_column!r} and folds is {self.folds}; the latest rows are one test set, so"
                " omit one of them"
            )
        if self.time_column and self.group_column:
            raise ValueError(
                f"--time is {self.time_column!r} and --group is {self.group_column!r}; rows are split by one of them,"
                " so omit the other"
            )

    @property
    def draws_test_set(self) -> bool:
        return not self.time_column

    @property
    def roles(self) -> dict[str, str]:
        """Roles of the columns that are no features, in words, by column."""
        named = {self.group_column: "group", self.time_column: "time", self.id_column: "identifier"}
        return dict.fromkeys(self.drop_columns, "left out") | {name: role for name, role in named.items() if name}

    @property
    def cross_validation(self) -> tuple[int, int] | None:
        return (self.fold, self.folds) if self.folds else None


@dataclass(frozen=True)
class BoxData(DataConfig):
    """Images with boxes: a COCO file (.json), "voc:FOLDER" of Pascal VOC, or one of :data:`BOX_SOURCES`.

    Attributes:
        image_root: folder of the images; "" is the folder of the COCO file, or that which the VOC folder has for them.
        validation_list, test_list: further COCO files of the same categories; "": none.
        test_fraction: part of the images for the test set where there is none, in (0, 1); 0 is
            :data:`TEST_FRACTION` there.
        bad_boxes: "refuse" an image with a box outside of it or without area, or "drop" such boxes.
    """

    image_root: str = ""
    validation_list: str = ""
    test_list: str = ""
    test_fraction: float = 0.0
    bad_boxes: str = "refuse"

    kind: ClassVar[str] = "images with boxes"
    validation_field: ClassVar[str] = "validation_list"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bad_boxes not in BAD_BOXES:
            raise ValueError(f"bad_boxes is {self.bad_boxes!r}; it must be one of {', '.join(BAD_BOXES)}")
        if (self.validation_list or self.test_list) and not self.source.endswith(".json"):
            raise ValueError(
                f"validation_list is {self.validation_list!r} and test_list is {self.test_list!r}, which are for COCO"
                f" files; {self.source} has its own splits, so omit them"
            )


BAD_BOXES = ("refuse", "drop")

TEST_FRACTION = 0.2
"""Part of the images with boxes that is the test set if nothing else says."""

DEFAULTS: dict[str, Any] = {
    "subset": "",
    "imbalance": 1.0,
    "head_images": 0,
    "test_per_class": 0,
    "validation_images": 0,
    "image_root": "",
    "validation_list": "",
    "test_list": "",
    "test_fraction": 0.0,
    "image_key": "image",
    "label_key": "label",
    "target": "",
    "digest": "",
    "folds": 0,
    "fold": 0,
    "validation_fraction": 0.0,
    "drop_columns": (),
    "group_column": "",
    "time_column": "",
    "id_column": "",
    "bad_boxes": "refuse",
}
"""Fields of all kinds but the source, in the order of records."""

ROLES = {"drop_columns": "--drop", "group_column": "--group", "time_column": "--time", "id_column": "--id"}
"""Fields of columns of a table that are no features, with the options that set them."""

LATER_FIELDS = (*ROLES, "bad_boxes")
"""Fields that a record lacks at their defaults, so that earlier ones keep their identity."""

KINDS: tuple[type[DataConfig], ...] = (PublishedData, FolderData, ListData, TimmData, TableData, BoxData)

FIELD_TYPES: dict[str, Any] = {
    name: hint for kind in KINDS for name, hint in get_type_hints(kind).items() if name in DEFAULTS
}
"""Types of :data:`DEFAULTS`."""


def data_config(source: str, **given: Any) -> DataConfig:
    """Build the configuration of a source from the flat fields of settings and records.

    Args:
        source: one of :data:`NAMED_SOURCES`; a path, or "path:PATH" if it looks like a name: a folder of images or of
            shards, or a list file; "torch/NAME", "hfds/NAME" or "tfds/NAME" for what timm reads; "wds/FOLDER" for
            WebDataset shards; a .csv or .parquet file with a ``target``, or "keel:NAME"; for boxes a .json file,
            "voc:FOLDER", or one of :data:`BOX_SOURCES`.
        given: any of :data:`DEFAULTS`. A field that this kind of source does not have must be at its default.

    Raises:
        TypeError: an unknown field.
        ValueError: a value out of its range, a field of another kind of source, or two that contradict each other.

    Example:
        >>> data_config("cifar10", subset="6_2", target="") == PublishedData("cifar10", subset="6_2")
        True
    """
    if unknown := given.keys() - DEFAULTS.keys():
        raise TypeError(f"{', '.join(sorted(unknown))} is no field of a source; allowed: {', '.join(DEFAULTS)}")
    check_ranges(given)
    kind = _kind(source, given)
    own = _field_names(kind)
    for name, value in given.items():
        if name not in own and value != DEFAULTS[name]:
            others = " or ".join(other.kind for other in KINDS if name in _field_names(other))
            raise ValueError(
                f"source is {source!r}, {kind.kind}, and {name} is {value!r}; {name} is for {others}, and must be"
                f" {DEFAULTS[name]!r} here"
            )
    return kind(source, **{name: value for name, value in given.items() if name in own})


def is_table(source: str, target: str) -> bool:
    """True for a table, False for images."""
    return bool(target) or source.startswith(KEEL) or Path(source).suffix.lower() == ".parquet"


def is_boxes(source: str) -> bool:
    """True for images with boxes."""
    return source in BOX_SOURCES or source.startswith(VOC) or Path(source).suffix.lower() == ".json"


def path_of(source: str) -> Path:
    """Path of a folder or list file."""
    return Path(source.removeprefix("path:").removeprefix(VOC)).expanduser()


def check_ranges(given: Mapping[str, Any]) -> None:
    """Check the numbers of a source, as far as they are given.

    Raises:
        ValueError: names the field, its value and its range.
    """
    for name, least in SMALLEST.items():
        if not given.get(name, least) >= least:  # also refuses nan
            raise ValueError(f"{name} is {given[name]}; it must be at least {least}")
    for name in ("test_fraction", "validation_fraction"):
        if not 0 <= given.get(name, 0) < 1:
            raise ValueError(f"{name} is {given[name]}; it must be in [0, 1)")
    if not math.isfinite(imbalance := given.get("imbalance", 1.0)):
        raise ValueError(f"imbalance is {imbalance}; it must be finite")
    fold, folds = given.get("fold", 0), given.get("folds", 0)
    if folds == 1:
        raise ValueError("folds is 1; it must be 0 (no cross-validation), or at least 2")
    if fold >= max(folds, 1):
        raise ValueError(f"fold is {fold} and folds is {folds}; it must be 0, or smaller than folds")


SMALLEST = {"imbalance": 1, **dict.fromkeys(("head_images", "test_per_class", "validation_images", "folds", "fold"), 0)}
"""Smallest legal value."""


def _kind(source: str, given: Mapping[str, Any]) -> type[DataConfig]:
    if is_table(source, given.get("target", "")):
        return TableData
    if is_boxes(source):
        return BoxData
    if source in NAMED_SOURCES:
        return PublishedData
    if source.startswith(PREFIXES):
        return TimmData
    path, listed = path_of(source), any(map(given.get, ("image_root", "validation_list", "test_list")))
    return ListData if path.is_file() or (listed and not path.is_dir()) else FolderData


def _field_names(kind: type[DataConfig]) -> set[str]:
    return {field.name for field in fields(kind)}
