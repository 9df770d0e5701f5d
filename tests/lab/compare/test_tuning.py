"""Settings are chosen on validation data alone, with one budget for every loss, and a rerun trains nothing anew."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from cyclofocal.lab.compare import tuning
from cyclofocal.lab.compare.tuning import SHARED_SEED, check_tuning, search_space, tuned, tuning_seed
from cyclofocal.lab.data import DataSet
from cyclofocal.lab.data.config import PublishedData, TableData
from cyclofocal.lab.data.dataset import in_memory
from cyclofocal.lab.recipes.catalogue import RECIPES
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY, CYCLICAL, FOCAL, LOSSES, LossSettings
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training import train as training
from cyclofocal.lab.training.run_folder import OtherRunError
from cyclofocal.lab.training.train import Setup, train

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

    def watch(recipe, loss, seed, setup, *, test):
        runs.append((loss, seed, test))
        return train(recipe, loss, seed, setup, test=test)

    monkeypatch.setattr(tuning, "train", watch)
    return runs


def tunable(loss, trials=3):
    return replace(loss, name=f"{loss.name}:tuned", title=f"{loss.title}, tuned", trials=trials)


def setup_in(folder):
    return Setup(folder=folder / "tiny" / "a-run", cpu=True)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_every_loss_spends_its_budget_and_begins_as_it_came(loss, trained):
    asked = tunable(loss)
    found = tuned(TINY, asked, 0, Setup(cpu=True))
    assert len(trained) == len({run[0] for run in trained}) == 3
    assert trained[0][0] == replace(asked, trials=0)
    assert found in [replace(run[0], trials=3) for run in trained]
    assert (found.name, found.title, found.trials) == (asked.name, asked.title, 3)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_only_the_settings_of_its_space_are_changed_and_within_it(loss, trained, monkeypatch):
    row = {"validation_balanced_accuracy": 0.5, "validation_nll": 1.0}
    record = replace(train(TINY, loss, 0, Setup(cpu=True), test=False), epochs=[row])
    monkeypatch.setattr(tuning, "train", lambda recipe, loss, *rest, **more: trained.append(loss) or record)
    tuned(TINY, tunable(loss, 30), 0, Setup(cpu=True))
    space = search_space(loss)
    if "gamma" in space:
        assert all(tried.gamma_pos == tried.gamma_neg for tried in trained)
        space["gamma_pos"] = space["gamma_neg"] = space.pop("gamma")
    for name in ("gamma_pos", "gamma_neg", "gamma_hc", "cyclical_factor", "label_smoothing", "learning_rate_scale"):
        values = {getattr(tried, name) for tried in trained}
        if name in space:
            assert len(values) > 10
            assert space[name][0] <= min(values) < max(values) <= space[name][1]
        else:
            assert values == {getattr(loss, name)}


def test_the_sampler_learns_from_every_trial_and_of_the_first_too(trained, monkeypatch):
    import optuna

    told, real = [], optuna.Study.tell
    monkeypatch.setattr(
        optuna.Study, "tell", lambda study, trial, *given: told.append(trial) or real(study, trial, *given)
    )
    tuned(TINY, tunable(CYCLICAL), 0, Setup(cpu=True))
    assert told[0].params == {name: getattr(CYCLICAL, name) for name in search_space(CYCLICAL)}
    for trial, (loss, _, _) in zip(told, trained, strict=True):
        assert trial.params == pytest.approx({name: getattr(loss, name) for name in trial.params}, rel=0.01)


def test_the_best_of_the_trials_is_taken_and_equal_ones_are_told_apart_by_their_nll(monkeypatch):
    scores = iter([(0.5, 1.0), (0.7, 3.0), (0.7, 2.0), (0.7, 2.0), (0.6, 0.1)])
    record, tried = train(TINY, CROSS_ENTROPY, 0, Setup(cpu=True), test=False), []

    def scored(recipe, loss, *rest, **more):
        accuracy, nll = next(scores)
        tried.append(loss)
        worse_before = {"validation_balanced_accuracy": 1.0, "validation_nll": 0.0}
        return replace(record, epochs=[worse_before, {"validation_balanced_accuracy": accuracy, "validation_nll": nll}])

    monkeypatch.setattr(tuning, "train", scored)
    found = tuned(TINY, tunable(CROSS_ENTROPY, 5), 0, Setup(cpu=True))
    assert found == replace(tried[2], trials=5)


def test_a_rerun_trains_nothing_and_a_greater_budget_only_what_is_new(tmp_path, monkeypatch):
    epochs = []
    real = training.run_epoch
    monkeypatch.setattr(training, "run_epoch", lambda *given: epochs.append(given) or real(*given))
    found = tuned(TINY, tunable(CYCLICAL), 4, setup_in(tmp_path))
    assert len(epochs) == 3 * TINY.epochs
    assert tuned(TINY, tunable(CYCLICAL), 4, setup_in(tmp_path)) == found
    assert len(epochs) == 3 * TINY.epochs
    tuned(TINY, tunable(CYCLICAL, 5), 4, setup_in(tmp_path))
    assert len(epochs) == 5 * TINY.epochs
    assert {path.parent.parent for path in tmp_path.rglob("record.jsonl")} == {tmp_path / "tuning" / "tiny"}


def test_the_same_settings_without_a_folder_and_after_other_draws(tmp_path):
    found = tuned(TINY, tunable(CYCLICAL), 4, setup_in(tmp_path))
    torch.rand(3)
    np.random.rand(3)
    assert tuned(TINY, tunable(CYCLICAL), 4, Setup(cpu=True)) == found


def test_a_trial_leaves_the_test_set_alone_and_a_run_does_not(tmp_path, trained):
    tuned(TINY, tunable(FOCAL), 0, setup_in(tmp_path))
    assert {test for _, _, test in trained} == {False}
    record = train(TINY, FOCAL, 0, Setup(cpu=True), test=False)
    assert (record.metrics, record.per_class, record.reliability) == ({}, [], [])
    assert record.epochs[-1]["validation_balanced_accuracy"] >= 0
    with pytest.raises(AssertionError, match="test set"):
        train(TINY, FOCAL, 0, Setup(cpu=True))


def test_a_trial_is_not_taken_for_a_run_that_was_tested(tmp_path):
    train(TINY, FOCAL, 0, Setup(folder=tmp_path, cpu=True), test=False)
    with pytest.raises(OtherRunError, match="test: False there, None now"):
        train(TINY, FOCAL, 0, Setup(folder=tmp_path, cpu=True))


def test_a_drawn_test_set_is_tuned_within_each_seed_and_a_fixed_one_once_for_all(trained):
    for recipe, seeds in (
        (TINY, {SHARED_SEED}),
        (replace(TINY, data=PublishedData("digits", validation_images=30)), {1, 2}),
    ):
        trained.clear()
        found = [tuned(recipe, tunable(CYCLICAL, 2), seed, Setup(cpu=True)) for seed in (1, 2)]
        assert {seed for _, seed, _ in trained} == seeds
        assert (found[0] == found[1]) or len(seeds) == 2
    tables = [TableData("people.csv", target="label"), TableData("people.csv", folds=5), TableData("keel:ecoli1")]
    for drawn in (*(replace(TINY, data=table) for table in tables), RECIPES["digits"]()):
        assert tuning_seed(drawn, 7) == 7
    for fixed in ("fashion-mnist-lt", "cifar10", "imagenet"):
        assert tuning_seed(RECIPES[fixed](), 7) == SHARED_SEED


def test_a_trial_that_diverges_is_spent_and_not_chosen(trained, monkeypatch):
    real = training.run_epoch
    diverges = {1, 2}

    def broken(*given):
        if len(trained) - 1 in diverges:
            raise FloatingPointError("the training loss is nan")
        return real(*given)

    monkeypatch.setattr(training, "run_epoch", broken)
    found = tuned(TINY, tunable(CYCLICAL, 4), 0, Setup(cpu=True))
    assert len(trained) == 4
    assert found in [replace(trained[kept][0], trials=4) for kept in (0, 3)]
    diverges |= {4, 5}
    with pytest.raises(FloatingPointError, match="cyclical focal, tuned: every one of 2 trials has diverged on tiny"):
        tuned(TINY, tunable(CYCLICAL, 2), 0, Setup(cpu=True))


def test_a_model_that_diverged_in_the_last_step_is_told_by_its_validation(monkeypatch):
    monkeypatch.setattr(training, "predict", lambda *given: torch.full((30, 3), torch.nan))
    with pytest.raises(FloatingPointError, match="focal, seed 3, epoch 0: a logit of the validation set"):
        train(TINY, FOCAL, 3, Setup(cpu=True), test=False)


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
        tuned(TINY, replace(tunable(CYCLICAL), **change), 0, setup_in(tmp_path))
    assert not trained
    assert not list(tmp_path.iterdir())


def test_without_validation_data_it_says_what_to_set(trained, tmp_path, monkeypatch):
    without = replace(DATA, validation=None)
    monkeypatch.setattr(tuning, "load_data", lambda recipe, root, seed: without)
    with pytest.raises(ValueError, match=r"tiny has no validation data .* validation_images is 0"):
        tuned(TINY.with_data(validation_images=0), tunable(CYCLICAL), 0, setup_in(tmp_path))
    assert not trained
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(tuning, "load_data", lambda recipe, root, seed: DATA)
    check_tuning(TINY.with_data(validation_images=0), tunable(CYCLICAL), tmp_path)  # the source has its own


def test_a_trial_waits_for_another_process_that_is_at_it(tmp_path, monkeypatch):
    held = []

    @contextmanager
    def lock(folder):
        held.append(folder)
        yield True
        held.remove(folder)

    def watch(recipe, loss, seed, setup, *, test):
        assert held == [setup.folder]
        return train(recipe, loss, seed, setup, test=test)

    monkeypatch.setattr(tuning, "locked", lock)
    monkeypatch.setattr(tuning, "train", watch)
    tuned(TINY, tunable(FOCAL, 2), 0, setup_in(tmp_path))
    assert not held


def test_without_optuna_it_says_how_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install '\.\[tuning\]'"):
        tuned(TINY, tunable(CYCLICAL), 0, setup_in(tmp_path))


def test_a_loss_of_the_users_own_has_a_learning_rate_to_tune():
    own = LossSettings("focal:tuned", "mine, tuned", file="mine.py:loss", digest="0")
    assert set(search_space(own)) == {"learning_rate_scale"}


def test_nothing_is_printed(capfd):
    tuned(TINY, tunable(FOCAL), 0, Setup(cpu=True))
    assert capfd.readouterr() == ("", "")
