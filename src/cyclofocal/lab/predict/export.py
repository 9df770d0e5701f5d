"""Export a trained network as a program of torch or as ONNX, and compare its numbers."""

import json
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cyclofocal.lab.messages import MissingDataError
from cyclofocal.lab.predict.model import TrainedModel
from cyclofocal.lab.records import write_atomically
from cyclofocal.lab.training import rng

Format = Literal["pt2", "onnx"]

CHECKED = 7
"""Number of inputs in the comparison; the export is traced with another one."""

LARGEST_DIFFERENCE = 1e-4
"""Largest difference, relative to the largest logit if it exceeds 1, that rounding explains."""


class ExportError(ValueError):
    """Export whose logits differ from those of the model; nothing is written."""


def export_model(model: TrainedModel, path: Path, kind: Format) -> float:
    """Write the network of a model, which takes any number of inputs and gives logits, and check it.

    The file also holds the names of the classes and the preprocessing, as JSON: "model.json" of the extra files of
    ``torch.export.load``, and the metadata "cyclofocal" of ONNX.

    Args:
        model: trained model.
        path: file to write.
        kind: "pt2", for ``torch.export.load``; "onnx", for ONNX Runtime and others.

    Returns:
        Largest difference between the logits of the file and those of the model, on random inputs.

    Raises:
        MissingDataError: a package that is needed is not installed.
        ExportError: the difference is larger than rounding explains.
    """
    with rng.seeded(0), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"model.{kind}"
        inputs = _random_inputs(model, CHECKED)
        found = {"pt2": _export_pt2, "onnx": _export_onnx}[kind](model, file)(inputs)
        with torch.no_grad():
            expected = model.module(inputs).numpy()
        difference = float(np.abs(found - expected).max())
        if not difference <= LARGEST_DIFFERENCE * max(1.0, float(np.abs(expected).max())):
            raise ExportError(f"{path}: its logits differ from those of the model by {difference:g}; not written")
        write_atomically(path, file.read_bytes())
    return difference


def _random_inputs(model: TrainedModel, count: int) -> Tensor:
    if model.encoder is not None:
        return torch.randn(count, model.description.inputs)
    return torch.randn(count, model.recipe.channels, model.recipe.image_size, model.recipe.image_size)


def _metadata(model: TrainedModel) -> str:
    found = model.description
    return json.dumps({"classes": found.classes, "preprocessing": found.preprocessing, "encoder": found.encoder})


def _export_pt2(model: TrainedModel, file: Path) -> Callable[[Tensor], NDArray[np.floating]]:
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model.module, (_random_inputs(model, 2),), dynamic_shapes=dynamic)
    torch.export.save(program, file, extra_files={"model.json": _metadata(model)})
    loaded = torch.export.load(file).module()
    return lambda inputs: loaded(inputs).detach().numpy()


def _export_onnx(model: TrainedModel, file: Path) -> Callable[[Tensor], NDArray[np.floating]]:
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise MissingDataError(f"ONNX needs {', '.join(missing)}. From a clone: pip install '.[onnx]'")
    import onnx
    import onnxruntime

    torch.onnx.export(
        model.module,
        (_random_inputs(model, 2),),
        file,
        input_names=["inputs"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    content = onnx.load(file)
    onnx.helper.set_model_props(content, {"cyclofocal": _metadata(model)})
    onnx.save(content, file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["logits"], {"inputs": inputs.numpy()})[0]
