"""Resolve command-line names to recipes: built-in recipes, tables, custom images and tables of KEEL."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclofocal.lab.data.config import KEEL, PREFIXES, ROLES, SHARDS, VOC, is_boxes
from cyclofocal.lab.data.files import EXTENSIONS
from cyclofocal.lab.data.tables import SUFFIXES
from cyclofocal.lab.messages import MissingDataError, did_you_mean
from cyclofocal.lab.recipes.catalogue import RECIPES
from cyclofocal.lab.recipes.detection import box_recipe
from cyclofocal.lab.recipes.image_folder import image_recipe
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.recipes.tabular import keel_recipe, keel_recipes, table_recipe

ALL = "all"
"""Name after "keel:" for every table that can be used."""


def resolve_recipes(name: str, target: str = "", fields: Mapping[str, Any] | None = None) -> list[Recipe]:
    """Resolve a name to its recipes; a table is read and checked.

    Args:
        name: a name of :data:`~cyclofocal.lab.recipes.catalogue.RECIPES`; a .csv or .parquet file; "keel:NAME", or
            "keel:all" for every table there whose classes have rows enough for its folds; a COCO file (.json) or
            folder of Pascal VOC; a folder or list of images, or another source of
            :func:`~cyclofocal.lab.data.config.data_config`.
        target: column of a .csv or .parquet file to predict.
        fields: further fields of the data of such a file, as of :class:`~cyclofocal.lab.data.config.TableData`.

    Raises:
        MissingDataError: a path that does not exist, or a package that is not installed.
        ValueError: an unknown name; the message suggests the nearest one. A table without a target, a target
            of something else, or a table that cannot be used.

    Example:
        >>> [recipe.title for recipe in resolve_recipes("digits")]
        ['handwritten digits, long-tailed 50:1']
    """
    is_file = Path(name).suffix.lower() in SUFFIXES
    roles = {field: value for field, value in (fields or {}).items() if field in ROLES}
    if roles and not is_file:
        said = ", ".join(f"{field} is {value!r}" for field, value in roles.items())
        raise ValueError(f"{said}, but {name} is no table, which ends in {' or '.join(SUFFIXES)}")
    if name.startswith(KEEL) and not target:
        table = name.removeprefix(KEEL)
        return keel_recipes() if table == ALL else [keel_recipe(table)]
    if name in RECIPES and not target:
        return [RECIPES[name]()]
    if is_file:
        return [_table(name, target, fields)]
    if target:
        raise ValueError(f"target is {target!r}, but {name} is no table, which ends in {' or '.join(SUFFIXES)}")
    if is_boxes(name):
        return [box_recipe(name)]
    if Path(name).expanduser().exists() or name.startswith((*PREFIXES, SHARDS, "path:")):
        return [source_recipe(name)]
    if Path(name).expanduser().is_symlink():
        raise MissingDataError(f"{name}: a link that leads to no file or folder; correct or remove it")
    raise _unknown(name)


def source_recipe(source: str) -> Recipe:
    """The recipe of images of the user: with boxes if it is a COCO file or a folder of Pascal VOC."""
    if is_boxes(source):
        return box_recipe(source)
    folder = Path(source).expanduser()
    if (folder / "Annotations").is_dir() or next(folder.glob("*.xml"), None) is not None:
        return box_recipe(f"{VOC}{source}")
    return image_recipe(source)


def check_name(name: str, root: Path = Path("data")) -> None:
    """Refuse the name of a recipe or a published data set if images or tables in the working folder also have it.

    Another folder of that name that is not empty and holds no runs is warned of (UserWarning), for it is not read.

    Args:
        name: name from the command line; a path such as "./digits" is unambiguous.
        root: folder of published data sets; one that lies in the working folder is no conflict.

    Raises:
        ValueError: the message says how to name either.
    """
    from cyclofocal.lab.data.load import READERS

    path = Path(name)
    published = name in READERS and (root / name).resolve() == path.resolve()
    known = name in RECIPES or name in READERS or name.startswith((*PREFIXES, SHARDS))
    if not known or published:
        return
    if _holds_images(path):
        raise ValueError(
            f"{name!r} is a name that cyclofocal knows, and there are images at {path.resolve()}; give ./{name} for"
            " these images, or run the command in another folder for what cyclofocal knows"
        )
    if table := next((entry for entry in _entries(path) if entry.suffix.lower() in SUFFIXES), None):
        raise ValueError(
            f"{name!r} is a name that cyclofocal knows, and there are tables at {path.resolve()}; give ./{table} for"
            " that table, or run the command in another folder for what cyclofocal knows"
        )
    if _entries(path) and not _holds_runs(path):
        warnings.warn(
            f"{name!r} is taken for what cyclofocal knows by this name; the folder {path.resolve()} is not read",
            UserWarning,
            stacklevel=2,
        )


def _entries(path: Path) -> list[Path]:
    """Visible entries of a folder; none for anything else."""
    return sorted(entry for entry in path.glob("*") if not entry.name.startswith("."))


def _holds_runs(path: Path) -> bool:
    """True for a folder of runs, which an earlier command has written."""
    return any(path.glob("*/run.json")) or any(path.glob("*/record.jsonl"))


def _holds_images(path: Path) -> bool:
    """True for a list file, and for a folder with images or shards at most three levels deep."""
    entries = (entry for depth in ("*", "*/*", "*/*/*") for entry in path.glob(depth))
    return path.is_file() or any(entry.name.lower().endswith((*EXTENSIONS, ".tar")) for entry in entries)


def _table(path: str, target: str, fields: Mapping[str, Any] | None) -> Recipe:
    if not Path(path).expanduser().is_file():
        raise MissingDataError(f"{path}: no such file.{did_you_mean(path, _siblings(path))}")
    if not target:
        raise ValueError(f"{path} is a table; name the column to predict, with --target")
    return table_recipe(path, target, fields)


def _unknown(name: str) -> ValueError:
    hint = did_you_mean(name, [*RECIPES, f"{KEEL}{ALL}", *_siblings(name)])
    return ValueError(
        f"{name!r} is no recipe, file or folder; give a name from `cyclofocal recipes`, a folder of images, a table"
        f" that ends in {' or '.join(SUFFIXES)}, {KEEL}NAME or {KEEL}{ALL}.{hint}"
    )


def _siblings(path: str) -> list[str]:
    """List the entries of a path's folder, as typed on the command line."""
    folder = Path(path).expanduser().parent
    return [str(Path(path).parent / entry.name) for entry in folder.iterdir()] if folder.is_dir() else []
