"""An exported network gives the logits of the model, for any number of inputs."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import cyclofocal.lab as lab
from cyclofocal.lab.predict import export
from cyclofocal.lab.predict.export import ExportError, export_model
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.train import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("digits")
    recipe = replace(digits(), epochs=1, warmup_epochs=0)
    train(Job(recipe, CROSS_ENTROPY, 0, folder, RunOptions(cpu=True, keep_models=True)))
    return lab.load(folder)


def test_a_program_of_torch_gives_equal_logits(model, tmp_path):
    assert export_model(model, tmp_path / "m.pt2", "pt2") < 1e-5
    extra = {"model.json": ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=extra).module()
    for count in (1, 5):
        inputs = torch.randn(count, 1, 8, 8)
        np.testing.assert_allclose(program(inputs).detach(), model.logits(inputs), rtol=1e-4, atol=1e-5)
    assert json.loads(extra["model.json"])["classes"] == list(model.classes)


def test_onnx_gives_equal_logits(model, tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    import onnxruntime

    assert export_model(model, tmp_path / "m.onnx", "onnx") < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for count in (1, 5):
        inputs = torch.randn(count, 1, 8, 8)
        (found,) = session.run(None, {"inputs": inputs.numpy()})
        np.testing.assert_allclose(found, model.logits(inputs), rtol=1e-4, atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["cyclofocal"])["classes"] == list(model.classes)


def test_other_logits_are_refused_and_not_written(model, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_export_pt2", lambda model, file: lambda inputs: model.module(inputs).numpy() + 0.01)
    with pytest.raises(ExportError, match=r"differ from those of the model by 0\.01"):
        export_model(model, tmp_path / "m.pt2", "pt2")
    assert not list(tmp_path.iterdir())
