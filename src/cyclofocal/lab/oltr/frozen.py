"""Frozen backbones: the network of a finished run, or one of timm's, without its classifier."""

import hashlib
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cyclofocal.lab.messages import did_you_mean
from cyclofocal.lab.oltr.features import read_run
from cyclofocal.lab.oltr.stage1 import Stage1Error, last_weights, stage1_model
from cyclofocal.lab.oltr.weights import load_weights
from cyclofocal.lab.training.models import classifier_of, without_classifier

CROPPED_BELOW = 0.95
"""Part of the image that timm's networks see in evaluation, below which the centre is cropped."""


@dataclass(frozen=True, eq=False)
class FrozenBackbone:
    """A network that gives features, and the preparation of images that it was trained with.

    Attributes:
        title: name in reports.
        digest: hash of its name and weights.
        network: gives features (N, D) of images.
        center_crop: see :class:`~cyclofocal.lab.recipes.head.HeadRecipe`.
        preparation: ``image_size``, ``channels``, ``mean`` and ``std`` of a recipe.
    """

    title: str
    digest: str
    network: nn.Module
    center_crop: bool
    preparation: dict[str, Any]

    def check_size(self, image_size: int) -> None:
        """Refuse images of a size that the network cannot take.

        Raises:
            ValueError: names its own size.
        """
        own, channels = self.preparation["image_size"], self.preparation["channels"]
        if image_size == own:
            return
        try:
            with torch.no_grad():
                self.network.eval()(torch.zeros(1, channels, image_size, image_size))
        except (RuntimeError, AssertionError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(
                f"image_size is {image_size}; {self.title} takes {own}, and not this size ({said})"
            ) from None

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the recipe of a head that this network decides."""
        described = {"backbone": self.title, "backbone_digest": self.digest, "center_crop": self.center_crop}
        return described | self.preparation


def find_backbone(given: str) -> FrozenBackbone:
    """The frozen backbone that a text names.

    Args:
        given: the folder of a finished run; a name that timm knows, for its pretrained weights; or NAME=FILE, for
            weights of that network in a file.

    Raises:
        Stage1Error, RunMismatchError, DamagedRunError: a folder without a finished run on images and its weights.
        MissingDataError, DamagedDataError: no such file of weights, or a file without any.
        ValueError: neither; the message suggests the nearest name. Weights of another network.
    """
    if Path(given).expanduser().is_dir():
        return _of_run(Path(given).expanduser())
    name, _, file = given.partition("=")
    return _of_timm(name, file)


def _of_run(folder: Path) -> FrozenBackbone:
    recipe, loss, seed = read_run(folder)
    last = last_weights(folder)
    with torch.random.fork_rng(devices=[]):
        model = stage1_model(replace(recipe, pretrained=False, weights_file=""), classes=2, seed=0)
        head = [f"{name}." for name, layer in model.named_modules() if layer is classifier_of(model)]
    network = without_classifier(model)
    try:
        network.load_state_dict({name: v for name, v in last.weights.items() if not name.startswith(tuple(head))})
    except RuntimeError as error:
        said = " ".join(str(error).split())[:200]
        raise Stage1Error(f"{last.path}: of another model ({said}); give the folder of another run") from None
    return FrozenBackbone(
        title=f"{recipe.model} trained on {recipe.name} ({loss}, seed {seed})",
        digest=_digest(recipe.model, network),
        network=network,
        center_crop=recipe.augment == "timm",
        preparation={name: getattr(recipe, name) for name in ("image_size", "channels", "mean", "std")},
    )


def _of_timm(name: str, file: str) -> FrozenBackbone:
    import timm

    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise ValueError(
            f"{name!r} is neither the folder of a run nor a network that timm knows; give OUT/RECIPE/LOSS-seedK-HASH, a"
            f" name that timm knows, or NAME=FILE for weights in a file.{hint}"
        )
    with torch.random.fork_rng(devices=[]):
        network = without_classifier(timm.create_model(name) if file else _pretrained(name))
    if file:
        load_weights(network, Path(file).expanduser())
    settings = timm.data.resolve_data_config({}, model=network, verbose=False)
    channels, size, _ = settings["input_size"]
    return FrozenBackbone(
        title=f"{name}, weights of {Path(file).name}" if file else f"{name}, timm's pretrained weights",
        digest=_digest(name, network),
        network=network,
        center_crop=settings["crop_pct"] < CROPPED_BELOW,
        preparation={
            "image_size": size,
            "channels": channels,
            "mean": tuple(map(float, settings["mean"])),
            "std": tuple(map(float, settings["std"])),
        },
    )


def _pretrained(name: str) -> nn.Module:
    import timm

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # of many kinds: no weights, no network, a full disk
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{name}: its pretrained weights are not available ({said}); give {name}=FILE") from None


def _digest(name: str, network: nn.Module) -> str:
    """16 hexadecimal digits of the SHA-256 of a network's name and tensors."""
    found = hashlib.sha256(name.encode())
    for key, value in network.state_dict().items():
        found.update(f"{key} {value.dtype} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
