"""Runs of two losses at one seed are a pair; one seed gives one record; the clock runs its whole context."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cyclofocal import cyclical_focal_loss
from cyclofocal.lab.recipes.criterion import build_criterion
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.loss import ASYMMETRIC, CROSS_ENTROPY, CYCLICAL, FOCAL, LOSSES
from cyclofocal.lab.training import batches
from cyclofocal.lab.training.batches import Batch
from cyclofocal.lab.training.epoch import CHECK_EVERY, NonFiniteGuard, TrainContext
from cyclofocal.lab.training.job import Job
from cyclofocal.lab.training.post_hoc import TAUS
from cyclofocal.lab.training.schedule import learning_rate, scheduled_values
from cyclofocal.lab.training.train import load_data, train
from cyclofocal.lab.training.train_state import TrainState, initial_model
from evidence import untimed

SHORT = replace(digits(), epochs=3, warmup_epochs=1)
AUGMENTED = replace(SHORT, augment="crop-flip", crop_padding=1, cutout=2)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _split(seed, tmp_path):
    return load_data(digits(), tmp_path, seed)


def test_split_is_disjoint_balanced_test_long_tailed_train(tmp_path):
    split = _split(0, tmp_path)
    assert np.bincount(split.test.labels).tolist() == [60] * 10
    assert np.bincount(split.train.labels).tolist() == [100, 64, 41, 27, 17, 11, 7, 4, 3, 2]
    train_rows = {tuple(image.flatten().tolist()) for image in split.train.inputs}
    assert not train_rows & {tuple(image.flatten().tolist()) for image in split.test.inputs}


def test_split_follows_the_seed(tmp_path):
    split = _split(0, tmp_path)
    assert torch.equal(split.train.inputs, _split(0, tmp_path).train.inputs)
    assert not torch.equal(split.test.inputs, _split(1, tmp_path).test.inputs)


def test_two_losses_at_one_seed_see_the_same_weights_and_images(monkeypatch):
    seen = {}

    def watch(self, batch, images, target, now):
        weights = [parameter.detach().clone() for parameter in self.model.parameters()]
        seen.setdefault(current, []).append((weights, images.clone()))
        return torch.tensor(0.0), torch.zeros(len(images), 10)

    monkeypatch.setattr(TrainState, "step", watch)
    same_model = [loss for loss in LOSSES if not loss.max_margin]  # with margins the last layer is another
    for loss in same_model:
        current = loss.name
        train(Job(AUGMENTED, loss, seed=5))
    assert len(seen["ce"]) == 27
    for other in same_model[1:]:
        for (weights, images), (their_weights, their_images) in zip(seen["ce"], seen[other.name], strict=True):
            assert all(map(torch.equal, weights, their_weights))
            assert torch.equal(images, their_images)


def test_epochs_differ_and_seeds_differ():
    first, again, next_epoch, other_seed = (
        torch.cat(batches.epoch_batches(seed, epoch, 276, 32)) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, next_epoch)
    assert not torch.equal(first, other_seed)
    assert first.sort().values.equal(torch.arange(276))


@pytest.mark.parametrize(
    ("recipe", "loss"),
    [(SHORT, CROSS_ENTROPY), (replace(AUGMENTED, mixup=0.4, ema_decay=0.9), CYCLICAL)],
    ids=["plain", "augmented"],
)
def test_one_seed_gives_one_record(recipe, loss):
    torch.manual_seed(123)
    first = train(Job(recipe, loss, seed=2))
    torch.manual_seed(456)
    again = train(Job(recipe, loss, seed=2))
    assert len(again.epoch_seconds) == 3
    assert untimed(again) == untimed(first)


def test_training_leaves_the_random_state_of_the_caller_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(3), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    train(Job(replace(SHORT, epochs=1, mixup=0.2), FOCAL, seed=1))
    assert torch.equal(torch.rand(3), expected[0])
    assert np.random.rand() == expected[1]


def test_digits_are_learnt_and_the_tail_is_hard():
    record = train(Job(digits(), CROSS_ENTROPY, seed=0))
    assert record.epochs[-1]["train_accuracy"] > 0.99
    assert record.metrics["balanced_accuracy"] > 0.75
    assert record.metrics["many"] > record.metrics["few"] + 0.1


def test_the_clock_runs_from_easy_over_hard_to_easy():
    record = train(Job(replace(digits(), epochs=5, warmup_epochs=0), CYCLICAL, seed=0))
    assert [row["eta"] for row in record.epochs] == pytest.approx([1, 0, 1 / 3, 2 / 3, 1])
    assert train(Job(SHORT, CROSS_ENTROPY, seed=0)).epochs[0]["eta"] is None


def test_one_epoch_is_legal():
    assert train(Job(replace(SHORT, epochs=1), CYCLICAL, seed=0)).epochs[0]["eta"] == 1


def test_learning_rate_warms_up_and_ends_near_0():
    rates = [learning_rate(digits(), epoch) for epoch in range(40)]
    assert rates[0] == pytest.approx(0.05 / 6)
    assert max(rates) < 0.05
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 0.001


def test_criteria_match_their_names():
    logits, target = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    assert torch.equal(build_criterion(CROSS_ENTROPY, [1] * 10)(logits, target), F.cross_entropy(logits, target))
    log_p = F.log_softmax(logits, 1)[range(6), target]
    focal = (-((1 - log_p.exp()) ** 2) * log_p).mean()
    torch.testing.assert_close(build_criterion(FOCAL, [1] * 10)(logits, target), focal)
    asymmetric = cyclical_focal_loss(logits, target, eta=0.0, gamma_pos=0.0, gamma_neg=4.0, label_smoothing=0.1)
    torch.testing.assert_close(build_criterion(ASYMMETRIC, [1] * 10)(logits, target), asymmetric)


def test_a_diverged_run_says_where_and_with_which_images():
    with pytest.raises(FloatingPointError) as error:
        train(Job(replace(SHORT, epochs=20, learning_rate=1e30), CROSS_ENTROPY, seed=0))
    said = str(error.value)
    for words in (
        "cross-entropy, seed 0: the training loss is nan in epoch 0, step ",
        "at learning rate 5e+29",
        "of digits",
    ):
        assert words in said
    step = int(said.partition("step ")[2].partition(",")[0])
    indices = batches.epoch_batches(0, 0, 276, 32)[step].tolist()
    assert f"(training images {' '.join(map(str, indices))})" in said


def test_guard_checks_in_batches_and_names_the_first_bad_step(tmp_path):
    """It would have to wait for each; only the kind of device is used here."""
    context = TrainContext(Job(SHORT, CYCLICAL, 0), _split(0, tmp_path).train, None, None, None)
    watch = NonFiniteGuard(context, 2, torch.device("cuda"))
    now = scheduled_values(SHORT, CYCLICAL, 2, 0, 9)
    for step in range(CHECK_EVERY - 1):
        loss = torch.tensor(math.inf if step in (7, 9) else 1.0)
        watch.add(step, now, loss, Batch(torch.empty(0), torch.empty(0), torch.tensor([step, 3]), 2))
    with pytest.raises(FloatingPointError, match=r"is inf in epoch 2, step 7, .*\(training images 7 3\)"):
        watch.add(CHECK_EVERY - 1, now, torch.tensor(1.0), Batch(torch.empty(0), torch.empty(0), torch.tensor([1]), 1))


def test_validation_every_epoch_test_set_once(monkeypatch):
    from cyclofocal.lab.training import train as module

    measured = []

    def watch(model, source, images, *rest):
        measured.append(images)
        return predict(model, source, images, *rest)

    predict = module.predict
    monkeypatch.setattr(module, "predict", watch)
    record = train(Job(SHORT.with_data(validation_images=101), CROSS_ENTROPY, seed=0))
    assert measured == [101, 101, 101, 101, 600]  # once more to choose what is done to the logits of the test set
    assert all(0 <= row["validation_accuracy"] <= 1 and row["validation_nll"] > 0 for row in record.epochs)


def test_a_record_holds_what_is_done_to_its_logits():
    record = train(Job(SHORT.with_data(validation_images=101), CROSS_ENTROPY, seed=0))
    assert record.temperature > 0
    assert record.tau in TAUS
    assert record.adjusted.keys() == record.metrics.keys()
    assert record.metrics["scaled_nll"] is not None
    assert np.array(record.confusion).sum(1).tolist() == record.test_counts
    recall = np.diag(record.confusion) / record.test_counts
    assert recall.tolist() == pytest.approx(record.per_class, abs=1e-6)
    alone = train(Job(SHORT, CROSS_ENTROPY, seed=0))
    assert (alone.tau, alone.temperature, alone.threshold) == (1.0, None, None)
    assert alone.metrics["scaled_nll"] is None
    assert alone.adjusted["balanced_accuracy"] != alone.metrics["balanced_accuracy"]


def test_ema_weights_are_evaluated():
    still = train(Job(replace(SHORT, ema_decay=1 - 1e-12), CROSS_ENTROPY, seed=0))  # hardly leaves the initial weights
    assert still.weights == "moving average"
    assert still.metrics["accuracy"] < 0.3 < train(Job(SHORT, CROSS_ENTROPY, seed=0)).metrics["accuracy"]


def test_bf16_trains_near_float32():
    full, half = (train(Job(replace(SHORT, precision=p), CYCLICAL, seed=0)) for p in ("no", "bf16"))
    assert half.epochs != full.epochs
    assert half.epochs[0]["train_loss"] == pytest.approx(full.epochs[0]["train_loss"], rel=0.05)


def test_initial_model_follows_the_seed():
    weights = [initial_model(digits(), 10, seed).classifier.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert initial_model(digits(), 10, 0)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
