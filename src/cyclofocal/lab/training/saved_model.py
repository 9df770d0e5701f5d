"""A finished model in the folder of its run: weights, and a description from which it is built again."""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED

from torch import Tensor, nn

from cyclofocal.lab.data.dataset import DataSet
from cyclofocal.lab.data.encoder import TableEncoder
from cyclofocal.lab.messages import MissingDataError, preview
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.records import not_a_file, versions, write_atomically
from cyclofocal.lab.schema import fault
from cyclofocal.lab.training.augment import per_channel
from cyclofocal.lab.training.transforms import crop_fraction

DESCRIPTION, WEIGHTS, VECTORIZER = "model.json", "model.safetensors", "vectorizer.skops"
"""Files of a model; the last one is there for tables with dates or free text alone."""

MODEL_FILES = (DESCRIPTION, WEIGHTS, VECTORIZER)

FORMAT = 1
"""Version of the description."""

TRUSTED = ("skrub.", "numpy.dtype")
"""Beginnings of the types that a vectorizer may hold, in addition to those that skops trusts by itself."""


class DamagedModelError(ValueError):
    """Model that cannot be loaded; the message begins with the path of a file and says what to do."""


@dataclass(frozen=True)
class ModelDescription:
    """All of a model but its weights and its vectorizer.

    Attributes:
        format: version of this format.
        recipe, loss, seed: fields of the run; they say how the network is built and how images are read.
        classes: names of the classes, in the order of the logits.
        train_counts: training samples per class.
        inputs: numbers in a row of a table; 0 for images.
        preprocessing: of images, the size, channels, crop, mean and standard deviation, and largest pixel in training.
        encoder: of a table, the fitted encoding of its columns; None for images.
        tau: strength with which the class prior is taken out.
        temperature: divisor of the logits fitted to validation data; None without.
        threshold: probability of class ``positive`` from which it is predicted for the best F1; None without.
        positive: the rarer of two classes.
        versions: versions of Python and of the packages.
        sha256: hash of each further file, by its name.
    """

    format: int
    recipe: dict[str, Any]
    loss: dict[str, Any]
    seed: int
    classes: list[str]
    train_counts: list[int]
    inputs: int
    preprocessing: dict[str, Any]
    encoder: dict[str, Any] | None
    tau: float
    temperature: float | None
    threshold: float | None
    positive: int
    versions: dict[str, str]
    sha256: dict[str, str]


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A model as its files hold it.

    Attributes:
        description: content of ``model.json``.
        weights: state dictionary of the network.
        encoder: encoder of the rows of a table; None for images.
    """

    description: ModelDescription
    weights: dict[str, Tensor]
    encoder: TableEncoder | None


def check_can_be_saved(data: DataSet) -> None:
    """Refuse before training a model that could not be saved after it.

    Raises:
        MissingDataError: dates or free text in a table, and skops is not installed.
    """
    if data.encoder is not None and data.encoder.vectorized and find_spec("skops") is None:
        raise MissingDataError(
            f"{data.title}: column {next(iter(data.encoder.vectorized))!r} holds dates or free text; saving its encoder"
            " needs skops. Install with: pip install skops; or give --no-keep-models"
        )


def save_model(
    folder: Path,
    model: nn.Module,
    data: DataSet,
    recipe: Recipe,
    identity: Mapping[str, Any],
    chosen: Mapping[str, Any],
) -> None:
    """Write the files of a model, each atomically, and the description, which names the others' hashes, last.

    Args:
        folder: of the run.
        model: network whose predictions count.
        data: data set that it was trained on.
        recipe: recipe of the run.
        identity: recipe, loss and seed as in ``run.json``.
        chosen: tau, temperature, threshold and positive; see :class:`ModelDescription`.
    """
    from safetensors.torch import save

    (folder / DESCRIPTION).unlink(missing_ok=True)
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    contents = {WEIGHTS: save(tensors)}
    if data.encoder is not None and data.encoder.vectorizer is not None:
        contents[VECTORIZER] = _dump(data.encoder.vectorizer)
    for name, content in contents.items():
        write_atomically(folder / name, content)
    description = ModelDescription(
        format=FORMAT,
        recipe=identity["recipe"],
        loss=identity["loss"],
        seed=identity["seed"],
        classes=list(data.classes),
        train_counts=list(data.counts),
        inputs=data.train.n_features,
        preprocessing={} if data.encoder is not None else _preprocessing(recipe, data),
        encoder=None if data.encoder is None else data.encoder.to_json(),
        versions=versions(),
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        **chosen,
    )
    write_atomically(folder / DESCRIPTION, json.dumps(vars(description), indent=1, allow_nan=False).encode())


def has_model(folder: Path) -> bool:
    """True if a run left its model."""
    return (folder / DESCRIPTION).is_file()


def read_model(folder: Path) -> SavedModel:
    """Read and check the files of a model.

    Raises:
        FileNotFoundError: no such folder, or no model in it.
        MissingDataError: skops is needed and not installed.
        DamagedModelError: a file that is missing, damaged or of another version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    description = _read_description(folder)
    contents = {name: _read_part(folder / name, sha256) for name, sha256 in description.sha256.items()}
    try:
        weights = load(contents[WEIGHTS])
        vectorizer = _load(contents[VECTORIZER], folder / VECTORIZER) if VECTORIZER in contents else None
        encoder = None if description.encoder is None else TableEncoder.from_json(description.encoder, vectorizer)
    except (KeyError, TypeError, SafetensorError) as error:
        raise DamagedModelError(f"{folder / DESCRIPTION}: no description of a model ({error}); {_REMEDY}") from None
    return SavedModel(description, weights, encoder)


_REMEDY = "remove it and run the same `cyclofocal train` command again"


def _preprocessing(recipe: Recipe, data: DataSet) -> dict[str, Any]:
    """Values that turn an image into the model's input; of boxes also the numbers of the classes for results."""
    boxes = {} if data.train.boxes is None else {"category_ids": list(data.category_ids)}
    return {
        "image_size": recipe.image_size,
        "channels": recipe.channels,
        "crop": crop_fraction(recipe),
        "mean": list(per_channel(recipe.mean, recipe.channels)),
        "std": list(per_channel(recipe.std, recipe.channels)),
        "max_pixel": data.train.max_pixel,
        **boxes,
    }


def _read_description(folder: Path) -> ModelDescription:
    path = folder / DESCRIPTION
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give the folder of a run, OUT/RECIPE/LOSS-seedK-HASH")
    if found := not_a_file(path):
        raise DamagedModelError(f"{path}: {found}, where a run has a file; move it, and run the same command again")
    if not path.exists():
        if below := sorted(str(found.parent) for found in folder.rglob(DESCRIPTION)):
            raise FileNotFoundError(f"{folder}: no run, but a folder of runs; give one with a model: {preview(below)}")
        raise FileNotFoundError(
            f"{folder}: no {DESCRIPTION}, and so no model; `cyclofocal compare` and unfinished runs leave none. Give"
            " the run's data, settings, loss and seed to `cyclofocal train`, with the same --out"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise DamagedModelError(f"{path}: not JSON; {_REMEDY}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DamagedModelError(f"{path}: not of format {FORMAT}, which this version reads; {_REMEDY}")
    if said := fault(content, ModelDescription, "model"):
        raise DamagedModelError(f"{path}: {said}; {_REMEDY}")
    return ModelDescription(**{name: content[name] for name in ModelDescription.__dataclass_fields__})


def _read_part(path: Path, sha256: str) -> bytes:
    if path.name not in MODEL_FILES:
        raise DamagedModelError(f"{path}: no file of a model, which are {', '.join(MODEL_FILES)}; {_REMEDY}")
    if not path.is_file():
        raise DamagedModelError(f"{path}: no such file; remove {DESCRIPTION}, and run the same command again")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedModelError(
            f"{path}: damaged, or of another run, for its SHA-256 is not the one in {DESCRIPTION}; remove"
            f" {DESCRIPTION}, and run the same command again"
        )
    return content


def _dump(vectorizer: Any) -> bytes:

    import skops.io

    content = io.BytesIO()
    skops.io.dump(vectorizer, content, compression=ZIP_DEFLATED)
    return content.getvalue()


def _load(content: bytes, path: Path) -> Any:
    """Load a vectorizer without running code from its file: only known types are built.

    Raises:
        MissingDataError: skops is not installed.
        DamagedModelError: it holds other types.
    """
    for package in ("skops", "skrub"):
        if find_spec(package) is None:
            raise MissingDataError(
                f"{path}: the encoder of dates and free text needs {package}. Install with: pip install {package}"
            )
    import skops.io

    found = skops.io.get_untrusted_types(data=content)
    if strange := [name for name in found if not name.startswith(TRUSTED)]:
        raise DamagedModelError(f"{path}: it holds {preview(strange)}, and not an encoder of skrub alone; {_REMEDY}")
    return skops.io.loads(content, trusted=found)
