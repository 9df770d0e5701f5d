"""Promise: training stops early by a measure that is fair to every loss, and the best epoch's weights are evaluated."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from cyclofocal import log_prior
from cyclofocal.lab.commands.plan import plan_lines
from cyclofocal.lab.oltr.recipes import TWO_STAGES
from cyclofocal.lab.recipes.criterion import validation_criterion
from cyclofocal.lab.recipes.custom_loss import file_digest
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY, CYCLICAL, FOCAL, LDAM_DRW, LOGIT_ADJUSTED, LOSSES, LossSettings
from cyclofocal.lab.recipes.recipe import FLAT_DEFAULTS, Recipe
from cyclofocal.lab.recipes.settings import with_settings
from cyclofocal.lab.recipes.tabular import keel_recipe, table_recipe
from cyclofocal.lab.records import VALIDATION_LOSS, best_epoch, has_stopped
from cyclofocal.lab.training.early_stopping import build_measure
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.run_folder import RunFolder, stored_record
from cyclofocal.lab.training.saved_model import read_model
from cyclofocal.lab.training.train import load_data, train
from cyclofocal.lab.training.train_state import TrainState

pytestmark = pytest.mark.usefixtures("one_thread")

COUNTS = [60, 30, 10]
WILD = replace(digits().with_data(validation_images=50), model="mlp", epochs=12, early_stopping=2, learning_rate=0.5)
"""Overfits after a few epochs."""


def rows(*losses):
    return [{VALIDATION_LOSS: loss} for loss in losses]


def test_the_rule_follows_from_the_rows_alone():
    assert (best_epoch(rows(3, 1, 2, 1)), best_epoch([{}, {}, {}])) == (1, 2)
    assert [has_stopped(rows(3, 1, 2, 1), patience) for patience in (0, 1, 2, 3)] == [False, True, True, False]
    assert not has_stopped([], 1)
    assert not has_stopped([{}] * 9, 1)


def test_the_weights_of_the_best_epoch_are_evaluated_and_stored(tmp_path, monkeypatch):
    kept, real = [], TrainState.keep_best
    monkeypatch.setattr(TrainState, "keep_best", lambda state: (real(state), kept.append(state.best)))
    folder = tmp_path / "run"
    record = train(Job(WILD, CROSS_ENTROPY, 0, folder, RunOptions(cpu=True, keep_models=True)))
    best = best_epoch(record.epochs)
    assert record.weights == "best epoch"
    assert len(record.epochs) == best + 1 + 2 < 12
    weights = read_model(folder).weights
    assert all(torch.equal(weights[name], value) for name, value in kept[-1].items())
    plain = train(Job(replace(WILD, early_stopping=0), CROSS_ENTROPY, 0, None, RunOptions(cpu=True)))
    for ours, theirs in zip(record.epochs, plain.epochs, strict=False):  # the schedules span the planned epochs
        assert ours == theirs | {VALIDATION_LOSS: ours[VALIDATION_LOSS]}
    assert stored_record(folder / "record.jsonl")[0] == record


@pytest.mark.parametrize("change", [{}, {"ema_decay": 0.5}])
def test_a_run_stopped_at_the_best_epoch_ends_as_if_not(change, tmp_path, monkeypatch):
    recipe, real = replace(WILD, **change), RunFolder.save_epoch
    job = Job(recipe, CYCLICAL, 0, tmp_path / "whole", RunOptions(cpu=True))
    whole = train(job)
    best = best_epoch(whole.epochs)
    for last in (best, best + 1):

        def save(run, epoch, content, last=last):
            real(run, epoch, content)
            if epoch == last:
                raise KeyboardInterrupt

        part = replace(job, folder=tmp_path / f"part{last}")
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "save_epoch", save)
            with pytest.raises(KeyboardInterrupt):
                train(part)
        resumed = train(part)
        assert (resumed.metrics, resumed.epochs, resumed.weights) == (whole.metrics, whole.epochs, whole.weights)
        assert resumed.confusion == whole.confusion


@pytest.fixture
def custom(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import torch.nn.functional as F\ndef mine(z, y):\n    return F.cross_entropy(z, y)\n")
    return LossSettings("mine", "mine", file=f"{file}:mine", digest=file_digest(file))


def test_every_loss_stops_early(custom):
    for loss in (*LOSSES, custom):
        record = train(Job(replace(WILD, epochs=2), loss, 0, None, RunOptions(cpu=True)))
        assert record.weights == "best epoch", loss.name
        assert all(math.isfinite(row[VALIDATION_LOSS]) for row in record.epochs)


def test_the_measure_has_prior_and_smoothing_but_no_clock():
    logits, target = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    assert validation_criterion(FOCAL, COUNTS)(logits, target) == pytest.approx(F.cross_entropy(logits, target).item())
    smoothed = F.cross_entropy(logits, target, label_smoothing=0.1).item()
    assert validation_criterion(CYCLICAL, COUNTS)(logits, target).item() == pytest.approx(smoothed)
    at_prior = F.cross_entropy(logits + log_prior(COUNTS), target).item()
    assert validation_criterion(LOGIT_ADJUSTED, COUNTS)(logits, target).item() == pytest.approx(at_prior)
    deferred = replace(LDAM_DRW, max_margin=0.0, class_weight="balanced")
    weights = 1 / torch.tensor(COUNTS)
    expected = F.cross_entropy(logits, target, weights / weights.mean()).item()
    assert validation_criterion(deferred, COUNTS)(logits, target).item() == pytest.approx(expected)


def test_confidence_alone_does_not_decide():
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(60) % 3
    logits = torch.randn(60, 3, generator=generator) + F.one_hot(target, 3)
    measure = build_measure(Job(WILD, CROSS_ENTROPY, 0), COUNTS, target)
    plain, confident = (measure(logits * scale, "")[VALIDATION_LOSS] for scale in (1.0, 5.0))
    assert plain == pytest.approx(confident, rel=1e-3)
    assert plain <= F.cross_entropy(logits, target).item()


def test_a_custom_loss_that_is_not_finite_is_named(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def mine(z, y):\n    return (z.sum() * 0 + 1e30) ** 4\n")
    loss = LossSettings("mine", "mine", file=f"{file}:mine", digest=file_digest(file))
    with pytest.raises(FloatingPointError, match="epoch 3: the loss of the validation set is inf"):
        build_measure(Job(WILD, loss, 0), COUNTS, torch.arange(3))(torch.zeros(3, 3), "epoch 3")


@pytest.mark.filterwarnings("ignore:.*column:UserWarning")
def test_tables_plan_2000_steps_and_without_validation_run_all(tmp_path):
    for name in ("iris0", "haberman", "abalone9-18"):
        recipe = keel_recipe(name)
        trained = len(load_data(recipe, tmp_path, 0).train)
        assert recipe.epochs * math.ceil(trained / recipe.batch_size) >= 2000
        assert 0 < recipe.early_stopping < recipe.epochs
    csv = tmp_path / "t.csv"
    csv.write_text("x,label\n" + "".join(f"{0.1 * (n * 7 % 40)},{'ab'[n % 40 > 24]}\n" for n in range(80)))
    recipe = with_settings(table_recipe(str(csv), "label"), ["validation_fraction=0", "epochs=4", "early_stopping=1"])
    record = train(Job(recipe, CROSS_ENTROPY, 0, None, RunOptions(cpu=True)))
    assert (record.weights, len(record.epochs)) == ("last epoch", 4)
    assert plan_lines([Job(recipe, CROSS_ENTROPY, 0)])[0].endswith(
        "4 epochs, no early stopping without validation rows"
    )


def test_it_is_refused_where_nothing_could_stop_it():
    with pytest.raises(ValueError, match=r"early_stopping is 3, and .* no validation images to stop by: set"):
        train(Job(replace(digits(), early_stopping=3), CROSS_ENTROPY, 0, None, RunOptions(cpu=True)))
    stages = next(iter(TWO_STAGES.values()))()
    with pytest.raises(ValueError, match="early_stopping is 2; both stages train all their epochs"):
        replace(stages, first=replace(stages.first, early_stopping=2))
    with pytest.raises(ValueError, match="early_stopping is -1; it must be at least 0"):
        replace(WILD, early_stopping=-1)


def test_runs_without_it_keep_their_identity():
    assert "early_stopping" not in digits().flat()
    recipe = with_settings(digits(), ["early_stopping=7"])
    assert Recipe.from_flat(json.loads(json.dumps(recipe.flat()))).early_stopping == 7
    assert FLAT_DEFAULTS["early_stopping"] == 0
    line = plan_lines([Job(recipe.with_data(validation_images=50), CROSS_ENTROPY, 0)])[0]
    assert line.endswith("40 epochs, or until 7 epochs bring no smaller validation loss")


def test_a_record_cut_off_before_it_stopped_is_damaged(tmp_path):
    record = train(Job(WILD, CROSS_ENTROPY, 0, tmp_path, RunOptions(cpu=True)))
    path, content = tmp_path / "record.jsonl", json.loads((tmp_path / "record.jsonl").read_text())
    path.write_text(
        json.dumps(content | {"epochs": content["epochs"][:-1], "epoch_seconds": []} | {"data_seconds": []}) + "\n"
    )
    found, (damaged,) = stored_record(path)
    assert found is None
    assert f"epochs has {len(record.epochs) - 1} rows; it must have 12" in str(damaged)
