"""Every quantity that varies moves as its formula says, per epoch or per step, and reaches loss and optimiser."""

import math
from dataclasses import replace

import pytest
import torch

from cyclofocal import CyclicalFocalLoss
from cyclofocal.lab.recipes.criterion import build_criterion
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY, CYCLICAL, FOCAL
from cyclofocal.lab.training.accelerator import start_accelerator
from cyclofocal.lab.training.batches import Batch
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.optim import apply_schedule, build_optimizer
from cyclofocal.lab.training.schedule import learning_rate, never_focal, scheduled_values
from cyclofocal.lab.training.train import train
from cyclofocal.lab.training.train_state import build_state, initial_model

RANGES = {"weight_decay": (1e-5, 8e-5), "temperature": (0.5, 2.0), "clip_norm": (0.5, 2.0)}
RECIPE = replace(digits(), epochs=9, warmup_epochs=2)


def eta_by_hand(progress, factor):
    if factor * progress <= 1:
        return 1 - factor * progress
    return (factor * progress - 1) / (factor - 1)


def cycling(names, **others):
    return replace(RECIPE, **{f"{name}_range": RANGES[name] for name in names}, **others)


@pytest.mark.parametrize("names", [("weight_decay",), ("temperature",), ("clip_norm",), tuple(RANGES)])
@pytest.mark.parametrize(("loss", "factor"), [(CYCLICAL, 4.0), (replace(CYCLICAL, cyclical_factor=2.0), 2.0)])
@pytest.mark.parametrize("clock", ["epoch", "step"])
def test_quantities_cycle_alone_and_together(names, loss, factor, clock):
    recipe, steps = cycling(names, clock=clock, cooldown_epochs=2), 5
    for epoch in range(11):
        for step in range(steps):
            progress = epoch / 10 if clock == "epoch" else (epoch * steps + step) / (11 * steps - 1)
            now, eta = scheduled_values(recipe, loss, epoch, step, steps), eta_by_hand(progress, factor)
            assert now.eta == pytest.approx(eta, abs=1e-12)
            for name in names:
                low, high = RANGES[name]
                assert getattr(now, name) == pytest.approx((1 - eta) * high + eta * low)
            constants = {"weight_decay": 5e-4, "temperature": 1.0, "clip_norm": None}
            assert all(getattr(now, name) == value for name, value in constants.items() if name not in names)


def test_a_loss_without_a_factor_cycles_the_rest_with_4():
    assert scheduled_values(cycling(("temperature",)), CROSS_ENTROPY, 2, 0, 1).eta == pytest.approx(
        eta_by_hand(0.25, 4)
    )
    assert scheduled_values(RECIPE, CROSS_ENTROPY, 2, 0, 1).eta is None


@pytest.mark.parametrize("clock", ["epoch", "step"])
@pytest.mark.parametrize("factor", [1.0, 1.01, 2.0, 4.0, 100.0])
@pytest.mark.parametrize(
    ("epochs", "cooldown", "steps"), [(1, 0, 1), (1, 0, 2), (2, 0, 1), (1, 1, 1), (3, 0, 1), (1, 0, 3)]
)
def test_warns_if_the_focal_phase_is_never_reached(clock, factor, epochs, cooldown, steps):
    recipe = replace(digits(), epochs=epochs, cooldown_epochs=cooldown, clock=clock)
    loss = replace(CYCLICAL, cyclical_factor=factor)
    etas = [scheduled_values(recipe, loss, e, s, steps).eta for e in range(recipe.total_epochs) for s in range(steps)]
    assert ("focal phase is never met" in never_focal(recipe, loss, steps)) == (set(etas) == {1})
    assert never_focal(recipe, FOCAL, steps) == ""


def test_warns_if_ranges_never_move():
    for loss in (CROSS_ENTROPY, FOCAL):
        assert "both epochs, so what cycles with it never moves" in never_focal(
            cycling(("temperature",), epochs=2), loss
        )
        assert never_focal(cycling(("temperature",), epochs=3), loss) == ""


def test_training_says_it_first_unless_a_command_has(capsys):
    short = replace(digits(), epochs=1, cooldown_epochs=1)
    with pytest.raises(FloatingPointError):
        train(Job(replace(short, learning_rate=1e30), CYCLICAL, 0))
    assert capsys.readouterr().err.startswith("cyclical focal on digits: eta is 1 in both epochs")
    train(Job(short, CYCLICAL, 0, options=RunOptions(command="cyclofocal compare digits")))
    assert "eta is 1" not in capsys.readouterr().err
    by_step = replace(short, cooldown_epochs=0, clock="step", batch_size=200)
    job = Job(by_step, CYCLICAL, 0, options=RunOptions(command="cyclofocal compare digits"))
    train(job)  # the command cannot know the number of steps
    assert capsys.readouterr().err.startswith("cyclical focal on digits: eta is 1 in both steps")


def test_epoch_rows_show_cycled_values():
    record = train(Job(replace(cycling(tuple(RANGES)), epochs=5), CYCLICAL, seed=0))
    eta = [1, 0, 1 / 3, 2 / 3, 1]
    for name, (low, high) in RANGES.items():
        assert [row[name] for row in record.epochs] == pytest.approx([(1 - e) * high + e * low for e in eta])


def test_weight_decay_reaches_the_groups_that_decay_and_no_other():
    recipe = cycling(("weight_decay",), decay_norms=False, weight_decay=0.0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    optimizer, criterion = build_optimizer(model, recipe), build_criterion(CYCLICAL, [1] * 10)
    for epoch in range(9):
        now = scheduled_values(recipe, CYCLICAL, epoch, 0, 1)
        apply_schedule(now, criterion, optimizer)
        eta = eta_by_hand(epoch / 8, 4)
        decays, spared = optimizer.param_groups
        assert decays["weight_decay"] == pytest.approx((1 - eta) * 8e-5 + eta * 1e-5)
        assert spared["weight_decay"] == 0
        assert len(decays["params"]) == 1
        assert decays["lr"] == spared["lr"] == learning_rate(recipe, epoch)
        assert isinstance(criterion, CyclicalFocalLoss)
        assert criterion.eta.item() == pytest.approx(eta)


def test_a_weight_decay_of_0_is_legal_and_stays_0():
    record = train(Job(replace(RECIPE, epochs=1, weight_decay=0.0, warmup_epochs=0), CYCLICAL, seed=0))
    assert record.metrics["accuracy"] > 0


@pytest.fixture
def step():
    """One step of plain gradient descent at rate 1 on random images: change of the weights, loss, logits."""

    def take(recipe, loss):
        recipe = replace(recipe, momentum=0.0, nesterov=False, weight_decay=0.0)
        accelerator = start_accelerator(recipe, RunOptions(cpu=True))
        state = build_state(Job(recipe, loss, 0), initial_model(recipe, 10, 0), accelerator, [1] * 10)
        before = [weight.detach().clone() for weight in state.model.parameters()]
        images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(16) % 10
        now = replace(scheduled_values(recipe, loss, 0, 0, 1), learning_rate=1.0)
        apply_schedule(now, state.criterion, state.optimizer)
        state.model.train()
        value, logits = state.step(Batch(images, labels, labels, 16), images, labels, now)
        change = [new - old for new, old in zip(state.model.parameters(), before, strict=True)]
        return torch.cat([c.detach().flatten() for c in change]), value, logits

    return take


def test_temperature_divides_the_logits_in_training(step):
    _, loss, logits = step(replace(RECIPE, temperature_range=(3.0, 3.0)), CROSS_ENTROPY)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits / 3, torch.arange(16) % 10))


def test_clipping_bounds_the_gradient(step):
    free, _, _ = step(RECIPE, CROSS_ENTROPY)
    clipped, _, _ = step(replace(RECIPE, clip_norm_range=(0.1, 7.0)), CROSS_ENTROPY)
    assert free.norm() > 0.2
    torch.testing.assert_close(clipped, free * 0.1 / free.norm(), rtol=1e-3, atol=1e-6)


def test_published_learning_rates():
    """Warm-up of 3 epochs from 0.01 to 0.15, cosine over 200 epochs, one epoch of cooldown."""
    recipe = replace(
        RECIPE,
        epochs=200,
        cooldown_epochs=1,
        learning_rate=0.15,
        warmup_epochs=3,
        warmup_learning_rate=0.01,
        min_learning_rate=1e-6,
    )
    rates = [learning_rate(recipe, epoch) for epoch in range(201)]
    assert rates[0] == pytest.approx(0.01, rel=1e-3)
    assert rates[1] == pytest.approx(0.01 + 0.14 / 3, rel=1e-3)
    for epoch in (3, 57, 199):
        cosine = (1 + math.cos(math.pi * epoch / 200)) / 2
        assert rates[epoch] == pytest.approx(1e-6 + (0.15 - 1e-6) * cosine)
    assert rates[200] == 1e-6


def test_steps_and_lines():
    stepped = replace(RECIPE, schedule="step", milestones=(3, 6), decay=0.1, warmup_epochs=0, learning_rate=1.0)
    assert [learning_rate(stepped, t) for t in (0, 2.9, 3, 5, 6, 8)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    line = replace(RECIPE, schedule="linear", warmup_epochs=0, learning_rate=1.0, epochs=4)
    assert [learning_rate(line, t) for t in (0, 0.5, 2, 3.5)] == pytest.approx([1, 0.875, 0.5, 0.125])


def test_the_last_step_is_at_the_end():
    recipe = replace(RECIPE, clock="step")
    assert scheduled_values(recipe, CYCLICAL, 0, 0, 7).progress == 0
    assert scheduled_values(recipe, CYCLICAL, 8, 6, 7).progress == 1
