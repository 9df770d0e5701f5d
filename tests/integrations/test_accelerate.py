"""Promise: with Accelerate eta follows the optimiser's steps, through accumulation and a saved and loaded state."""

import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cyclofocal import CyclicalFocalLoss
from cyclofocal.integrations.accelerate import LossScheduler
from cyclofocal.schedules import cyclical_eta

EPOCHS, BATCHES, ACCUMULATION = 3, 5, 2
STEPS = math.ceil(BATCHES / ACCUMULATION)  # per epoch; the last one of an epoch has a single batch
EXPECTED = [
    cyclical_eta((epoch * STEPS + batch // ACCUMULATION) / (EPOCHS * STEPS - 1))
    for epoch in range(EPOCHS)
    for batch in range(BATCHES)
]


class Training:
    def __init__(self, criterion=None):
        torch.manual_seed(0)
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION)
        generator = torch.Generator().manual_seed(1)
        count = BATCHES * 4
        data = torch.randn(count, 4, generator=generator), torch.randint(3, (count,), generator=generator)
        model = nn.Linear(4, 3)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            model, torch.optim.SGD(model.parameters(), lr=0.1), DataLoader(TensorDataset(*data), batch_size=4)
        )
        self.criterion = criterion or CyclicalFocalLoss(weight=torch.ones(3))
        total_steps = EPOCHS * math.ceil(len(self.loader) / ACCUMULATION)
        self.scheduler = LossScheduler(self.accelerator, self.criterion, total_steps)
        self.seen = []

    def run(self, epochs):
        for _ in range(epochs):
            for x, y in self.loader:
                with self.accelerator.accumulate(self.model):
                    self.seen.append(self.criterion.eta.item())
                    self.accelerator.backward(self.criterion(self.model(x), y))
                    self.optimizer.step()
                    self.scheduler.step()
                    self.optimizer.zero_grad()


def test_eta_follows_the_optimizer_steps_under_accumulation():
    training = Training()
    training.run(EPOCHS)
    assert training.seen == pytest.approx(EXPECTED, abs=1e-6)
    assert training.criterion.progress == 1


def test_a_loaded_state_continues_it(tmp_path):
    whole, halted, resumed = Training(), Training(), Training()
    whole.run(EPOCHS)
    halted.run(1)
    halted.accelerator.save_state(str(tmp_path))
    resumed.accelerator.load_state(str(tmp_path))
    resumed.run(EPOCHS - 1)
    assert halted.seen + resumed.seen == pytest.approx(whole.seen, abs=1e-6)
    torch.testing.assert_close(resumed.model.weight, whole.model.weight)


@pytest.mark.parametrize(("scheme", "tau"), [(None, 1.0), ("balanced", 0.0), ("sqrt", 0.5), ("effective", 1.0)])
def test_counts_give_class_weights_and_the_prior(prior_loss, scheme, tau):
    settings = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0, "class_weight": scheme, "tau": tau}
    training = Training(CyclicalFocalLoss.from_counts([500, 40, 9], **settings))
    x, y = next(iter(training.loader))
    logits = training.model(x)
    loss = training.criterion(logits, y)
    training.accelerator.backward(loss)
    value, gradient = prior_loss(logits.detach(), y, [500, 40, 9], tau, scheme)
    assert loss.item() == pytest.approx(value, rel=1e-5)
    scale = training.accelerator.gradient_accumulation_steps
    assert training.model.bias.grad.mul(scale).tolist() == pytest.approx(gradient.sum(0), abs=1e-6)


def test_class_weights_start_late():
    settings = {"class_weight": "balanced", "weight_start": 0.5}
    training, weighted = Training(CyclicalFocalLoss.from_counts([500, 40, 9], **settings)), []
    training.criterion.register_forward_pre_hook(
        lambda criterion, _: weighted.append(criterion.weight_now() is not None)
    )
    training.run(EPOCHS)
    done = [epoch * STEPS + batch // ACCUMULATION for epoch in range(EPOCHS) for batch in range(BATCHES)]
    assert weighted == [step / (EPOCHS * STEPS - 1) >= 0.5 for step in done]


def test_counts_of_other_classes_are_refused():
    with pytest.raises(ValueError, match=r"logit_offset has shape \(2,\); for logits of shape \(4, 3\)"):
        Training(CyclicalFocalLoss.from_counts([9, 1], tau=1.0)).run(1)


def test_a_scheduler_that_is_never_stepped_warns():
    training = Training()
    training.scheduler.step = lambda: None
    with pytest.warns(UserWarning, match="progress was never set"):
        training.run(100 // BATCHES)


def test_more_steps_than_total_steps_stay_at_1_and_warn():
    training = Training()
    training.run(EPOCHS)
    with pytest.warns(UserWarning, match="more optimiser steps than total_steps=9"):
        training.run(1)
    assert training.criterion.progress == 1


def test_a_second_training_without_the_scheduler_warns():
    training = Training()
    training.run(EPOCHS)
    training.scheduler.step = lambda: None
    with pytest.warns(UserWarning, match="progress was never set"):
        training.run(100 // BATCHES)


def test_a_wrong_call_is_refused():
    accelerator = Accelerator(cpu=True)
    with pytest.raises(TypeError, match="CrossEntropyLoss"):
        LossScheduler(accelerator, nn.CrossEntropyLoss(), 10)
    with pytest.raises(ValueError, match="has total_steps=10"):
        LossScheduler(accelerator, CyclicalFocalLoss(total_steps=10), 10)
    with pytest.raises(ValueError, match="total_steps is 0"):
        LossScheduler(accelerator, CyclicalFocalLoss(), 0)
