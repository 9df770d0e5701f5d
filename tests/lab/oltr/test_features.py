"""Classifiers are fitted to the features of a finished run from the command line, and their logits are stored."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cyclofocal.lab.commands import app
from cyclofocal.lab.commands.decoupled import METHODS
from cyclofocal.lab.compare.grid import CHECKPOINT_SECONDS
from cyclofocal.lab.data.config import TableData
from cyclofocal.lab.oltr.evaluation import evaluate_file
from cyclofocal.lab.oltr.features import features_of
from cyclofocal.lab.oltr.stage1 import Stage1Error
from cyclofocal.lab.oltr.stages import STAGE1
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY
from cyclofocal.lab.training import checkpoint
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.run_folder import RunFolder, identity, run_folder
from cyclofocal.lab.training.train import train
from stages import FIRST

RECIPE = replace(FIRST, model="small-resnet", image_size=16, epochs=3)
CPU = RunOptions(cpu=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that has ended."""
    path = tmp_path_factory.mktemp("runs") / "run"
    train(Job(RECIPE, CROSS_ENTROPY, 0, path, CPU), STAGE1)
    return path


def run(folder, *arguments):
    return CliRunner().invoke(app, ["decoupled", str(folder), "--cpu", *map(str, arguments)], env={"COLUMNS": "120"})


def test_features_and_classifier_give_the_logits_of_the_run(folder):
    features = features_of(folder, CPU)
    kept = np.load(folder / "predictions.npz")
    np.testing.assert_allclose(features.classifier(features.test[0]).detach(), kept["logits"], rtol=1e-4, atol=1e-4)
    assert np.array_equal(features.test[1], kept["target"])
    assert features.train[0].shape == (sum(features.counts), features.classifier.in_features)
    assert torch.bincount(features.train[1]).tolist() == list(features.counts) == kept["train_counts"].tolist()
    assert (features.seed, features.title, features.validation) == (0, "cross-entropy", None)


def test_every_method_has_a_row_and_a_file_that_can_be_evaluated(folder):
    result = run(folder, "--epochs", 2, "--batch-size", 64)
    assert result.exit_code == 0, result.output
    assert "digits, stage 1, cross-entropy, seed 0" in result.output
    assert "tau-norm, tau 1 " in result.output  # there are no validation images to choose by
    for name, title in METHODS.items():
        found = evaluate_file(folder / "decoupled" / f"{name}.npz", threshold=0.5)
        (line,) = [line for line in result.output.splitlines() if line.strip().startswith(title)]
        assert f"{100 * found.numbers['accuracy']:.1f}" in line
    assert evaluate_file(folder / "decoupled" / "plain.npz", 0.5).numbers["accuracy"] == pytest.approx(
        evaluate_file(folder / "predictions.npz", 0.5).numbers["accuracy"]
    )


def test_tau_is_the_best_on_validation_images(folder, tmp_path):
    path = tmp_path / "run"
    recipe = replace(RECIPE.with_data(validation_images=80), epochs=1)
    train(Job(recipe, CROSS_ENTROPY, 0, path, CPU), STAGE1)
    features = features_of(path, CPU)
    images, labels = features.validation
    weight = features.classifier.weight.detach()

    def balanced(tau):
        right = (images @ (weight / weight.norm(dim=1, keepdim=True) ** tau).T).argmax(1) == labels
        return np.mean([right[labels == c].float().mean() for c in range(8)])

    best = max((step / 10 for step in range(21)), key=balanced)
    result = run(path, "--method", "tau")
    assert f"tau-norm, tau {best:g} " in result.output, result.output
    assert "tau-norm, tau 0.3 " in run(path, "--method", "tau", "--tau", 0.3).output


def test_a_run_of_a_comparison_is_sent_to_a_command_that_works(tmp_path, monkeypatch):
    """To run the comparison again would remove its checkpoints again."""
    monkeypatch.chdir(tmp_path)
    recipe = replace(digits(), epochs=1)
    folder = run_folder(tmp_path, recipe, CROSS_ENTROPY, 0)
    train(Job(recipe, CROSS_ENTROPY, 0, folder, replace(CPU, checkpoint_seconds=CHECKPOINT_SECONDS)))
    said = run(folder, "--method", "plain")
    assert said.exit_code == 1
    assert "remove the folder" not in said.stderr
    for words in ("no checkpoint", "`cyclofocal train` or `cyclofocal reproduce`, which do", "another --out"):
        assert words in " ".join(said.stderr.split())
    again = ["train", "digits", "--loss", "ce", "--seed", "0", "--set", "epochs=1", "--cpu", "--out", "other"]
    assert CliRunner().invoke(app, again).exit_code == 0
    assert run(tmp_path / "other" / folder.relative_to(tmp_path), "--method", "plain").exit_code == 0


def copy_of(folder, tmp_path):
    """A copy of a run, and its checkpoints, the newest first."""
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    return copied, checkpoint.checkpoints(copied)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"run": None}, "run is NoneType; it must be a dictionary"),
        ({"run": []}, "run is list; it must be a dictionary"),
        ({"model": 3}, "model is int; it must be a dictionary"),
        ({"model": {}}, "of another model (Error(s) in loading state_dict"),
        ({"model": {"classifier.weight": torch.zeros(2)}}, "of another model (Error(s) in loading state_dict"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_a_checkpoint_of_wrong_content_is_named(part, words, alone, folder, tmp_path):
    copied, (newest, older) = copy_of(folder, tmp_path)
    checkpoint.save_checkpoint(copied, 2, checkpoint.load_checkpoint(newest) | part)
    if alone:
        older.unlink()
    with pytest.raises(Stage1Error) as error:
        features_of(copied, CPU)
    said = str(error.value)
    assert said.startswith(f"{newest}: {words}")
    assert f"{copied / 'record.jsonl'}, and run the same command again" in said
    assert ("checkpoint is of epoch 1, and that of epoch 2, the last, is missing" in said) == (
        not alone and "another model" not in words
    )
    assert "\n" not in said


def test_last_epoch_is_used_though_a_newer_file_is_damaged(folder, tmp_path, capsys):
    copied, (newest, _) = copy_of(folder, tmp_path)
    (copied / "checkpoint-00003.pt").write_bytes(newest.read_bytes()[:100])
    torch.testing.assert_close(features_of(copied, CPU).train, features_of(folder, CPU).train, rtol=0, atol=0)
    assert "damaged checkpoint, the one before is used" in capsys.readouterr().err


def test_a_run_with_a_damaged_record_is_named(folder, tmp_path):
    copied, _ = copy_of(folder, tmp_path)
    (copied / "record.jsonl").write_text("{")
    with pytest.raises(Stage1Error, match=r"record\.jsonl, line 1: not JSON .*; run it again"):
        features_of(copied, CPU)


def test_a_run_on_a_table_is_refused(tmp_path):
    table = replace(RECIPE, data=TableData("people.csv", target="label"), held_out_classes=0)
    RunFolder(tmp_path, identity(table, CROSS_ENTROPY, 0))
    with pytest.raises(Stage1Error, match="a run on a table; other classifiers are fitted to features of images"):
        features_of(tmp_path, CPU)


def test_runs_other_than_stage_1_are_refused(folder, tmp_path):
    result = run(tmp_path)
    assert (result.exit_code, "no run there" in result.stderr) == (1, True)
    unended = tmp_path / "unended"
    RunFolder(unended, identity(RECIPE, CROSS_ENTROPY, 0))
    with pytest.raises(Stage1Error, match="has not ended"):
        features_of(unended, CPU)
    for name, recipe in (("second", replace(RECIPE, stage=2).flat()), ("older", RECIPE.flat() | {"gone": 1})):
        RunFolder(tmp_path / name, identity(RECIPE, CROSS_ENTROPY, 0) | {"recipe": recipe})
        with pytest.raises(Stage1Error, match="stage 2, whose classifier" if name == "second" else "another version"):
            features_of(tmp_path / name, CPU)
    unknown = run(folder, "--method", "crt,taw")
    assert unknown.exit_code == 2
    assert "Did you mean 'tau'?" in " ".join(unknown.output.split())
