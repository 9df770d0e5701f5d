"""Both stages run from one command, resume after a stop, and are the same on two processes."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cyclofocal.lab.commands import app
from cyclofocal.lab.compare.grid import run_job
from cyclofocal.lab.oltr import recipes, stages
from cyclofocal.lab.oltr.evaluation import evaluate_file
from cyclofocal.lab.oltr.features import features_of
from cyclofocal.lab.oltr.recipes import cyclical
from cyclofocal.lab.oltr.stage1 import Stage1Error, stage1_weights
from cyclofocal.lab.oltr.stage_recipe import TwoStages
from cyclofocal.lab.oltr.stages import stage2_job, task_of
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY
from cyclofocal.lab.records import read_records
from cyclofocal.lab.training import checkpoint
from cyclofocal.lab.training import loop as training
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.run_folder import DamagedRunError, RunFolder, RunMismatchError
from cyclofocal.lab.training.train import train
from cyclofocal.lab.training.train_state import initial_model
from stages import FIRST

CPU = RunOptions(cpu=True)
CYCLICAL = cyclical(0.0, 4.0)
CE = (CROSS_ENTROPY, CROSS_ENTROPY)
SECOND = replace(
    FIRST, name="digits-2", title="digits, stage 2", stage=2, features_lr_scale=0.1, centroids_lr_scale=2.0
)
STAGES = TwoStages(FIRST, SECOND, (CE, (CYCLICAL, CYCLICAL)))


def second(folder, loss=CROSS_ENTROPY, experiment=STAGES):
    """The job of stage 2, which knows that of its stage 1."""
    return stage2_job(experiment, loss, 0, folder, CPU)


def run(job):
    """Train a job alone, not what it needs."""
    return train(job, task_of(job.recipe))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Both stages of both losses have ended here."""
    folder = tmp_path_factory.mktemp("runs")
    for loss in (CROSS_ENTROPY, CYCLICAL):
        run(second(folder, loss).stage1)
        run(second(folder, loss))
    return folder


def record(folder, stage, loss):
    (found,) = (folder / f"digits-{stage}").glob(f"{loss}-seed0-*")
    return next(iter(read_records(found / "record.jsonl"))), found


def test_records_and_logits_of_both_stages(out):
    for stage in (1, 2):
        run, folder = record(out, stage, "cyclical")
        assert run.train_counts == [60, 41, 28, 19, 13, 9, 6, 4]
        assert [row["eta"] for row in run.epochs] == [
            1.0,
            1.0,
        ]  # its whole cycle in each stage; two epochs are its ends
        assert {"few", "f_oltr", "f_oltr_old", "auroc", "fpr95"} <= set(run.metrics)
        again = evaluate_file(folder / "predictions.npz", threshold=0.5)
        assert again.numbers == run.metrics
        assert (again.n_images, again.n_unknown) == (240, 60)


def test_the_second_stage_is_built_on_the_first(out):
    one, two = (checkpoint.load_latest(record(out, stage, "ce")[1])[0]["model"] for stage in (1, 2))
    assert two["memory.centroids"].isfinite().all()
    assert {"attention.project.weight", "classifier.selector.weight"} <= set(two)
    ours = one["classifier.weight"]
    begun = two["classifier.hallucinator.weight"]
    assert begun.shape == ours.shape
    assert torch.nn.functional.cosine_similarity(begun, ours).min() > 0.9  # it has moved from there a little


def test_the_centroids_begin_as_the_mean_features(out, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(training, "fit", lambda run: seen.append((run.state.model, run.data)))
    run(replace(second(out), folder=None))
    network, data = seen[0]
    pixels = data.train.inputs / data.train.max_pixel
    network.eval()
    for c in range(8):
        own = [network.features(image[None])[0] for image in pixels[torch.from_numpy(data.train.labels == c)]]
        torch.testing.assert_close(network.memory.centroids[c], sum(own) / len(own), rtol=1e-4, atol=1e-5)


def test_a_stopped_second_stage_ends_as_if_it_had_not_been(out, monkeypatch, tmp_path):
    kept = RunFolder.save_epoch

    def stop(self, epoch, content):
        kept(self, epoch, content)
        raise KeyboardInterrupt

    job = second(tmp_path, CYCLICAL)
    run(job.stage1)
    monkeypatch.setattr(RunFolder, "save_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        run(job)
    monkeypatch.setattr(RunFolder, "save_epoch", kept)
    run(job)
    for name, value in checkpoint.load_latest(record(out, 2, "cyclical")[1])[0]["model"].items():
        other = checkpoint.load_latest(record(tmp_path, 2, "cyclical")[1])[0]["model"][name]
        assert torch.equal(value, other), name


def test_frozen_features_stay_to_the_bit(out, tmp_path):
    frozen = replace(STAGES, second=replace(SECOND, frozen=True))
    run_job(second(tmp_path, experiment=frozen))
    one, two = (checkpoint.load_latest(record(tmp_path, stage, "ce")[1])[0]["model"] for stage in (1, 2))
    compared = 0
    for name, value in two.items():
        if name.startswith("backbone.body."):
            assert torch.equal(value, one[name.replace("backbone.body", "features")]), name
            compared += 1
    assert compared > 5


def test_features_lr_scale_of_stage_1(tmp_path):
    slow = replace(FIRST, features_lr_scale=1e-30, momentum=0.0, weight_decay=0.0)
    run(second(tmp_path, experiment=replace(STAGES, first=slow)).stage1)
    found = checkpoint.load_latest(record(tmp_path, 1, "ce")[1])[0]["model"]
    begun = initial_model(slow, 8, 0).state_dict()
    weights = dict(initial_model(slow, 8, 0).named_parameters())
    moved = {name for name in weights if not torch.allclose(found[name], begun[name])}
    assert moved == {"classifier.weight", "classifier.bias"}


def test_a_second_stage_without_its_first_is_refused(out, tmp_path):
    with pytest.raises(Stage1Error, match="no run there; stage 2 of cross-entropy, seed 0, begins with the stage 1"):
        run(second(tmp_path))
    job = second(out).stage1
    for other, said in (
        ({"loss": CYCLICAL}, "name: 'ce' there, 'cyclical' now"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"recipe": replace(FIRST, epochs=3)}, "epochs: 2 there, 3 now"),
    ):
        with pytest.raises(Stage1Error, match=f"holds another run .*{said}"):
            stage1_weights(replace(job, **other))
    unended = tmp_path / "unended"
    unended.mkdir()
    (unended / "run.json").write_bytes((job.folder / "run.json").read_bytes())
    with pytest.raises(Stage1Error, match="has not ended"):
        stage1_weights(replace(job, folder=unended))
    with pytest.raises(Stage1Error, match="stage is 2; stage 2 begins with weights of stage 1"):
        run(replace(second(tmp_path / "alone"), stage1=None))


def test_experiment_is_identified_by_its_stage_1(out):
    recipes = [record(out, 2, loss)[0].recipe for loss in ("ce", "cyclical")]
    assert recipes[0] == recipes[1]
    longer = replace(STAGES, first=replace(FIRST, epochs=3))
    sharper = replace(STAGES, losses=(CE, (cyclical(1.0, 4.0), CYCLICAL)))
    assert len({stages.with_stage1_digest(found).first for found in (STAGES, longer, sharper)}) == 3


def test_a_second_stage_begins_with_the_moving_average(tmp_path, monkeypatch):
    averaged = replace(STAGES, first=replace(FIRST, ema_decay=0.9))
    job = second(tmp_path, experiment=averaged)
    run(job.stage1)
    content = checkpoint.load_latest(record(tmp_path, 1, "ce")[1])[0]
    seen = []
    monkeypatch.setattr(training, "fit", lambda run: seen.append(run.state.model.classifier.hallucinator.weight))
    run(job)
    assert torch.equal(seen[0], content["average"]["module.classifier.weight"])
    assert not torch.equal(seen[0], content["model"]["classifier.weight"])


def test_stages_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="model is 'small-convnet' in stage 1 and 'small-resnet' in stage 2"):
        TwoStages(FIRST, replace(SECOND, model="small-resnet"), STAGES.losses)
    with pytest.raises(ValueError, match="stage is 3"):
        replace(FIRST, stage=3)
    with pytest.raises(ValueError, match="stage 2 has no mixup"):
        replace(SECOND, mixup=0.2)
    with pytest.raises(ValueError, match="give one open set"):
        replace(FIRST, open_source="elsewhere")


@pytest.mark.parametrize("name", ["record.jsonl", "checkpoint-00001.pt"])
def test_a_second_stage_refuses_files_of_another_first(out, tmp_path, name):
    shutil.copytree(out / "digits-1", tmp_path / "digits-1")
    ours, theirs = (record(tmp_path, 1, loss)[1] for loss in ("ce", "cyclical"))
    shutil.copy(theirs / name, ours)
    with pytest.raises(Stage1Error, match="is of another run") as error:
        run(second(tmp_path))
    assert str(error.value).startswith(str(ours / name))
    assert "name: 'cyclical' there, 'ce' now" in str(error.value)


def test_a_finished_stage_of_another_run_is_refused(out, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "fit", None)
    shutil.copytree(out / "digits-1", tmp_path / "digits-1")
    ours, theirs = (record(tmp_path, 1, loss)[1] for loss in ("ce", "cyclical"))
    shutil.copy(theirs / "record.jsonl", ours)
    with pytest.raises(RunMismatchError, match="name: 'cyclical' there, 'ce' now"):
        run(second(tmp_path).stage1)


def test_a_folder_in_the_place_of_the_logits_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "fit", None)
    (tmp_path / "predictions.npz").mkdir()
    with pytest.raises(DamagedRunError, match=r"predictions\.npz: a folder, where a run has a file"):
        run(Job(FIRST, CROSS_ENTROPY, 0, tmp_path, CPU))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "empty"),
        ("[1]", "not a dictionary"),
        ("{}", "recipe is null; it must be a dictionary"),
        ('{"recipe": {"name": 1}}', "it must have epochs, learning_rate, source, title"),
    ],
)
def test_features_need_a_valid_run_json(content, words, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=words) as error:
        features_of(tmp_path, CPU)
    assert str(error.value).startswith(f"{tmp_path / 'run.json'}: ")


def test_two_processes_give_the_numbers_of_one(out, tmp_path):
    code = (
        "import sys; sys.path += sys.argv[2:]; from pathlib import Path; import test_stages as t;"
        "t.run_job(t.second(Path(sys.argv[1]), t.CYCLICAL))"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    folders = Path(__file__).parent, Path(__file__).parents[2]
    command = [str(word) for word in (*launch, tmp_path, *folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for stage in (1, 2):
        one, two = record(out, stage, "cyclical")[0], record(tmp_path, stage, "cyclical")[0]
        assert (one.processes, two.processes) == (1, 2)
        for ours, theirs in zip(one.epochs, two.epochs, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3)
        logits = [
            np.load(record(folder, stage, "cyclical")[1] / "predictions.npz")["logits"] for folder in (out, tmp_path)
        ]
        np.testing.assert_allclose(*logits, rtol=0.01, atol=0.02)


def test_one_command_for_both_stages(monkeypatch, tmp_path):
    monkeypatch.setitem(recipes.TWO_STAGES, "fashion-mnist-open", lambda: STAGES)
    arguments = [
        "reproduce",
        "fashion-mnist-open",
        "--loss",
        "ce",
        "--cpu",
        "--out",
        str(tmp_path),
        "--set",
        "epochs=1",
    ]
    refused = CliRunner().invoke(app, [*arguments, "--stage", "2"])
    assert refused.exit_code == 1
    done = CliRunner().invoke(app, [word if word != "ce" else "ce,cyclical" for word in arguments])
    assert done.exit_code == 0, done.output
    for stage in (1, 2):
        assert f"cyclical focal on digits-{stage}: eta is 1 in the only epoch" in done.stderr
        for title in ("cross-entropy", "cyclical focal"):
            assert f"digits, stage {stage}, {title}, seed 0: many/medium/few/all" in done.output
    assert "balanced accuracy" in done.output  # the comparison of the second stages
    lone = CliRunner().invoke(app, [*arguments, "--set", "2:epochs=2", "--stage", "2"])
    assert lone.exit_code == 0, lone.output
    folders = [json.loads((path / "run.json").read_text()) for path in (tmp_path / "digits-2").iterdir()]
    assert sorted(run["recipe"]["epochs"] for run in folders) == [1, 1, 2]
