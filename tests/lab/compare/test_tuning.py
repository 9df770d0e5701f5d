"""Settings are chosen on validation data alone, with one budget for every loss, and a rerun trains nothing again."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from cyclofocal.lab.compare import grid, tuning
from cyclofocal.lab.compare.grid import run_job
from cyclofocal.lab.compare.tuning import SHARED_SEED, check_tuning, search_space, tune, tuning_seed
from cyclofocal.lab.data.config import PublishedData, TableData
from cyclofocal.lab.data.dataset import DataSet, in_memory
from cyclofocal.lab.oltr import stages  # noqa: F401  # before load_data is replaced, which it imports by name
from cyclofocal.lab.recipes.catalogue import RECIPES
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY, CYCLICAL, FOCAL, LOSSES, LossSettings
from cyclofocal.lab.recipes.parse_losses import losses_in
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training import loop
from cyclofocal.lab.training import train as training
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.run_folder import RunMismatchError
from cyclofocal.lab.training.train import train

pytest.importorskip("optuna")

TINY = Recipe(
    "tiny",
    "blurred squares",
    PublishedData("fashion-mnist", validation_images=30),
    epochs=2,
    learning_rate=0.05,
    model="small-convnet",
    width=4,
    image_size=8,
    channels=1,
    batch_size=24,
)


class Poison:
    """A test set that cannot be touched."""

    def __getattribute__(self, name):
        raise AssertionError(f"the test set's {name} was asked for")

    def __len__(self):
        raise AssertionError("the test set was counted")


def images(count, seed):
    labels = np.arange(count) % 3
    noise = np.random.default_rng(seed).integers(200, size=(count, 1, 8, 8))
    noise[np.arange(count), 0, 2 * labels] += 55
    return in_memory(torch.from_numpy(noise.astype(np.uint8)), labels, "squares")


DATA = DataSet("squares", ("a", "b", "c"), images(48, 0), images(30, 1), Poison())


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for module in (training, tuning):
        monkeypatch.setattr(module, "load_data", lambda recipe, root, seed: DATA)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def trained(monkeypatch):
    """Losses and seeds of the trainings, and whether the test set was to be touched."""
    runs = []

    def watch(job):
        runs.append((job.loss, job.seed, job.test))
        return run_job(job)

    monkeypatch.setattr(tuning, "run_job", watch)
    return runs


def tunable(loss, trials=3):
    return replace(loss, name=f"{loss.name}:tuned", title=f"{loss.title}, tuned", trials=trials)


def job(recipe, loss, seed=0, folder=None, test=True):
    return Job(recipe, loss, seed, folder and folder / "tiny" / "a-run", RunOptions(cpu=True), test=test)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_every_loss_spends_its_budget_and_begins_as_it_came(loss, trained):
    asked = tunable(loss)
    found = tune(job(TINY, asked, 0))
    assert len(trained) == len({run[0] for run in trained}) == 3
    assert trained[0][0] == replace(asked, trials=0)
    assert found in [replace(run[0], trials=3) for run in trained]
    assert (found.name, found.title, found.trials) == (asked.name, asked.title, 3)


@pytest.mark.parametrize("loss", [*LOSSES, *losses_in("cyclical:tau=1,smoothing_odds=10")], ids=lambda loss: loss.name)
def test_only_settings_of_the_space_change_within_bounds(loss, trained, monkeypatch):
    row = {"validation_balanced_accuracy": 0.5, "validation_nll": 1.0}
    record = replace(train(job(TINY, loss, 0, test=False)), epochs=[row])
    monkeypatch.setattr(tuning, "run_job", lambda trial: trained.append(trial.loss) or record)
    tune(job(TINY, tunable(loss, 30), 0))
    space = search_space(loss)
    if "gamma" in space:
        assert all(tried.gamma_pos == tried.gamma_neg for tried in trained)
        space["gamma_pos"] = space["gamma_neg"] = space.pop("gamma")
    for name in (
        "gamma_pos",
        "gamma_neg",
        "gamma_hc",
        "cyclical_factor",
        "label_smoothing",
        "smoothing_odds",
        "learning_rate_scale",
    ):
        values = {getattr(tried, name) for tried in trained}
        if name in space:
            assert len(values) > 10
            assert space[name][0] <= min(values) < max(values) <= space[name][1]
        else:
            assert values == {getattr(loss, name)}


def test_sampler_learns_from_every_trial(trained, monkeypatch):
    import optuna

    told, real = [], optuna.Study.tell
    monkeypatch.setattr(
        optuna.Study, "tell", lambda study, trial, *given: told.append(trial) or real(study, trial, *given)
    )
    tune(job(TINY, tunable(CYCLICAL), 0))
    assert told[0].params == {name: getattr(CYCLICAL, name) for name in search_space(CYCLICAL)}
    for trial, (loss, _, _) in zip(told, trained, strict=True):
        assert trial.params == pytest.approx({name: getattr(loss, name) for name in trial.params}, rel=0.01)


def test_best_trial_wins_ties_broken_by_nll(monkeypatch):
    scores = iter([(0.5, 1.0), (0.7, 3.0), (0.7, 2.0), (0.7, 2.0), (0.6, 0.1)])
    record, tried = train(job(TINY, CROSS_ENTROPY, 0, test=False)), []

    def scored(trial):
        accuracy, nll = next(scores)
        tried.append(trial.loss)
        worse_before = {"validation_balanced_accuracy": 1.0, "validation_nll": 0.0}
        return replace(record, epochs=[worse_before, {"validation_balanced_accuracy": accuracy, "validation_nll": nll}])

    monkeypatch.setattr(tuning, "run_job", scored)
    found = tune(job(TINY, tunable(CROSS_ENTROPY, 5), 0))
    assert found == replace(tried[2], trials=5)


def test_two_classes_are_tuned_by_auroc(monkeypatch):
    scores = iter([(0.9, 0.6), (0.5, 0.8), (0.7, 0.7)])
    record, tried = train(job(TINY, CROSS_ENTROPY, 0, test=False)), []

    def scored(trial):
        accuracy, auroc = next(scores)
        tried.append(trial.loss)
        row = {"validation_balanced_accuracy": accuracy, "validation_auroc": auroc, "validation_nll": 1.0}
        return replace(record, epochs=[row])

    monkeypatch.setattr(tuning, "run_job", scored)
    assert tune(job(TINY, tunable(CROSS_ENTROPY, 3), 0)) == replace(tried[1], trials=3)


def test_rerun_trains_nothing_larger_budget_only_new_trials(tmp_path, monkeypatch):
    epochs = []
    real = loop.run_epoch
    monkeypatch.setattr(loop, "run_epoch", lambda *given: epochs.append(given) or real(*given))
    found = tune(job(TINY, tunable(CYCLICAL), 4, tmp_path))
    assert len(epochs) == 3 * TINY.epochs
    assert tune(job(TINY, tunable(CYCLICAL), 4, tmp_path)) == found
    assert len(epochs) == 3 * TINY.epochs
    tune(job(TINY, tunable(CYCLICAL, 5), 4, tmp_path))
    assert len(epochs) == 5 * TINY.epochs
    assert {path.parent.parent for path in tmp_path.rglob("record.jsonl")} == {tmp_path / "tuning" / "tiny"}


def test_same_settings_without_a_folder(tmp_path):
    found = tune(job(TINY, tunable(CYCLICAL), 4, tmp_path))
    torch.rand(3)
    np.random.rand(3)
    assert tune(job(TINY, tunable(CYCLICAL), 4)) == found


def test_a_trial_leaves_the_test_set_alone_and_a_run_does_not(tmp_path, trained):
    tune(job(TINY, tunable(FOCAL), 0, tmp_path))
    assert {test for _, _, test in trained} == {False}
    record = train(job(TINY, FOCAL, 0, test=False))
    assert (record.metrics, record.per_class, record.reliability) == ({}, [], [])
    assert record.epochs[-1]["validation_balanced_accuracy"] >= 0
    with pytest.raises(AssertionError, match="test set"):
        train(job(TINY, FOCAL, 0))


def test_a_trial_is_not_taken_for_a_run_that_was_tested(tmp_path):
    train(job(TINY, FOCAL, 0, tmp_path, test=False))
    with pytest.raises(RunMismatchError, match="test: False there, None now"):
        train(job(TINY, FOCAL, 0, tmp_path))


def test_drawn_test_sets_are_tuned_per_seed_fixed_ones_once(trained):
    for recipe, seeds in (
        (TINY, {SHARED_SEED}),
        (replace(TINY, data=PublishedData("digits", validation_images=30)), {1, 2}),
    ):
        trained.clear()
        found = [tune(job(recipe, tunable(CYCLICAL, 2), seed)) for seed in (1, 2)]
        assert {seed for _, seed, _ in trained} == seeds
        assert (found[0] == found[1]) or len(seeds) == 2
    tables = [TableData("people.csv", target="label"), TableData("people.csv", folds=5), TableData("keel:ecoli1")]
    for drawn in (*(replace(TINY, data=table) for table in tables), RECIPES["digits"]()):
        assert tuning_seed(drawn, 7) == 7
    for fixed in ("fashion-mnist-lt", "cifar10", "imagenet"):
        assert tuning_seed(RECIPES[fixed](), 7) == SHARED_SEED


def test_a_trial_that_diverges_is_spent_and_not_chosen(trained, monkeypatch):
    real = loop.run_epoch
    diverges = {1, 2}

    def broken(*given):
        if len(trained) - 1 in diverges:
            raise FloatingPointError("the training loss is nan")
        return real(*given)

    monkeypatch.setattr(loop, "run_epoch", broken)
    found = tune(job(TINY, tunable(CYCLICAL, 4), 0))
    assert len(trained) == 4
    assert found in [replace(trained[kept][0], trials=4) for kept in (0, 3)]
    diverges |= {4, 5}
    with pytest.raises(FloatingPointError, match="cyclical focal, tuned: every one of 2 trials has diverged on tiny"):
        tune(job(TINY, tunable(CYCLICAL, 2), 0))


def test_divergence_in_the_last_step_is_found_by_validation(monkeypatch):
    monkeypatch.setattr(training, "predict", lambda *given: torch.full((30, 3), torch.nan))
    with pytest.raises(FloatingPointError, match="focal, seed 3, epoch 0: a logit of the validation set"):
        train(job(TINY, FOCAL, 3, test=False))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trials": 0}, "trials is 0; it must be at least 1"),
        ({"name": "mystery"}, "'mystery' cannot be tuned; its name must begin with one of ce, smoothed"),
        ({"gamma_hc": 3.6}, "gamma_hc is 3.6; tuning cyclical focal, tuned tries 0 to 3.5"),
    ],
)
def test_a_loss_that_cannot_be_tuned_is_refused_before_any_work(change, words, trained, tmp_path):
    with pytest.raises(ValueError, match=words):
        tune(job(TINY, replace(tunable(CYCLICAL), **change), 0, tmp_path))
    assert not trained
    assert not list(tmp_path.iterdir())


def test_missing_validation_data_is_refused(trained, tmp_path, monkeypatch):
    without = replace(DATA, validation=None)
    monkeypatch.setattr(tuning, "load_data", lambda recipe, root, seed: without)
    with pytest.raises(ValueError, match=r"tiny has no validation data .* validation_images is 0"):
        tune(job(TINY.with_data(validation_images=0), tunable(CYCLICAL), 0, tmp_path))
    assert not trained
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(tuning, "load_data", lambda recipe, root, seed: DATA)
    check_tuning(TINY.with_data(validation_images=0), tunable(CYCLICAL), tmp_path)  # the source has its own


def test_a_trial_waits_for_another_process_that_is_at_it(tmp_path, monkeypatch):
    held = []

    @contextmanager
    def lock(folder, wait):
        assert wait
        held.append(folder)
        yield True
        held.remove(folder)

    def watch(trial, task):
        assert held == [trial.folder]
        return train(trial, task)

    monkeypatch.setattr(grid, "lock_run", lock)
    monkeypatch.setattr(training, "train", watch)
    tune(job(TINY, tunable(FOCAL, 2), 0, tmp_path))
    assert not held


def test_without_optuna_it_says_how_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install '\.\[tuning\]'"):
        tune(job(TINY, tunable(CYCLICAL), 0, tmp_path))


def test_a_loss_of_the_users_own_has_a_learning_rate_to_tune():
    own = LossSettings("focal:tuned", "mine, tuned", file="mine.py:loss", digest="0")
    assert set(search_space(own)) == {"learning_rate_scale"}


def test_nothing_is_printed(capfd):
    tune(job(TINY, tunable(FOCAL), 0))
    assert capfd.readouterr() == ("", "")


def test_tau_is_tuned_where_a_loss_has_one():
    adjusted, plain, prior = losses_in("logit-adjusted,cyclical,cyclical:tau=1")
    assert search_space(adjusted) == {"learning_rate_scale": (0.3, 3.0), "tau": (0.0, 2.5)}
    assert "tau" not in search_space(plain)
    assert search_space(prior).items() >= {"tau": (0.0, 2.5), "cyclical_factor": (1.0, 8.0)}.items()
