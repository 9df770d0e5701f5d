"""Weights of a network from a file, such as those of Caffe's ResNet-152 that Places-LT was published with."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cyclofocal.lab.messages import DamagedDataError, MissingDataError, preview
from cyclofocal.lab.training.models import classifier_of

UNTRAINED = "num_batches_tracked"
"""A counter that files of before 2018 do not have."""


def load_weights(model: nn.Module, path: Path) -> None:
    """Let ``model`` have the weights of a file, all but its classifier, which is of other classes.

    The file holds tensors by torchvision's names, which timm's residual networks share: ``conv1.weight``,
    ``bn1.running_mean``, ``layer1.0.conv1.weight``, ``layer1.0.downsample.0.weight`` and so on, on their own or below
    ``state_dict`` or ``model``; it is one of ``torch.save`` or ``.safetensors``. Caffe's ResNet-152 is published so. As
    in OLTR it is loaded into the usual network, although it was trained with BGR pixels in [0, 255] and strides
    elsewhere in a block; training bridges the gap.

    Raises:
        MissingDataError: no such file.
        DamagedDataError: the file holds no weights.
        ValueError: weights of another network; says which are missing or of another shape.
    """
    found, own = read_weights(path), model.state_dict()
    network: Any = model
    last = network.get_classifier() if hasattr(model, "get_classifier") else classifier_of(model)
    head = {id(value) for value in last.state_dict(keep_vars=True).values()}
    new = {name for name, value in model.state_dict(keep_vars=True).items() if id(value) in head}
    needed = [name for name in own if name not in new and not name.endswith(UNTRAINED)]
    missing = [name for name in needed if name not in found]
    other = [
        f"{name} {tuple(found[name].shape)} for {tuple(own[name].shape)}"
        for name in needed
        if name in found and found[name].shape != own[name].shape
    ]
    if missing or other:
        problems = [
            f"{len(names)} {what} ({preview(names)})"
            for names, what in ((missing, "missing"), (other, "of another shape"))
            if names
        ]
        raise ValueError(f"{path}: weights of another network, {', '.join(problems)}")
    model.load_state_dict(own | {name: found[name] for name in needed})


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a file by their names.

    Raises:
        MissingDataError: no such file.
        DamagedDataError: the file holds something else.
    """
    if not path.is_file():
        raise MissingDataError(f"{path}: no such file; weights_file must be one, or empty")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, SafetensorError) as error:
        raise DamagedDataError(f"{path}: no weights that torch reads ({str(error).splitlines()[0]})") from error
    content: Any = stored
    for name in ("state_dict", "model"):
        content = content.get(name, content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise DamagedDataError(f"{path}: holds no tensors by name")
    return {name.removeprefix("module."): value for name, value in content.items()}
