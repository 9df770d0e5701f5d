"""Promise: eta and other cyclical values follow the trainer's steps in every kind of training, or an error says why."""

import csv
import math
from datetime import timedelta

import pytest
import torch

pytest.importorskip("lightning")
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from cyclofocal import CyclicalFocalLoss
from cyclofocal.integrations.lightning import CyclicalFocalCallback
from cyclofocal.schedules import cyclical_eta, interpolate

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
PLAIN = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0}
RANGES = {"weight_decay": (0.1, 0.8), "temperature": (0.5, 2.0), "gradient_clip_val": (0.2, 1.0)}


class Classifier(LightningModule):
    """A linear classifier that records the values of every batch."""

    def __init__(self, criterion=None, automatic=True):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.criterion = criterion or CyclicalFocalLoss()
        self.register_buffer("temperature", torch.ones(()), persistent=False)
        self.automatic_optimization = automatic
        self.seen, self.validated, self.stepped = [], [], []

    def training_step(self, batch, batch_idx):
        self.seen.append(self.criterion.eta.item())
        loss = self.criterion(self.layer(batch[0]) / self.temperature, batch[1])
        if not self.automatic_optimization:
            self.manual_backward(loss)
            if batch_idx % 2:
                self.optimizers().step()
                self.optimizers().zero_grad()
        return loss

    def validation_step(self, batch, batch_idx):
        logits = self.layer(batch[0]) / self.temperature
        plain = nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
        self.validated.append((self.criterion(logits, batch[1]).item(), plain.item()))

    def configure_optimizers(self):
        groups = [{"params": [self.layer.weight], "weight_decay": 0.3}, {"params": [self.layer.bias]}]
        return torch.optim.SGD(groups, lr=0.1)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        norm = nn.utils.get_total_norm([p.grad for p in self.layer.parameters()]).item()
        self.stepped.append((decays, self.temperature.item(), gradient_clip_val, norm))


def loader(batches=5, cls=TensorDataset):
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(batches * 4, 4, generator=generator) * 10, torch.randint(3, (batches * 4,), generator=generator)
    return DataLoader(cls(*data), batch_size=4)


def etas(total, repeat=1):
    """Eta of every optimiser step, each ``repeat`` times."""
    return [cyclical_eta(step / (total - 1)) for step in range(total) for _ in range(repeat)]


def fit(module, callback=None, data=None, ckpt_path=None, **settings):
    callbacks = [callback or CyclicalFocalCallback(), *settings.pop("callbacks", [])]
    trainer = Trainer(**QUIET | settings, callbacks=callbacks)
    trainer.fit(module, loader() if data is None else data, ckpt_path=ckpt_path)
    return module


def test_max_epochs():
    module = fit(Classifier(), max_epochs=3)
    assert module.seen == pytest.approx(etas(15), abs=1e-6)
    assert module.criterion.progress == 1


def test_eta_is_logged(tmp_path):
    logger = CSVLogger(tmp_path, name=None, version="")
    fit(Classifier(), max_epochs=3, logger=logger, log_every_n_steps=1)
    rows = csv.DictReader((tmp_path / "metrics.csv").open())
    assert [float(row["eta"]) for row in rows] == pytest.approx(etas(15), abs=1e-6)


def test_max_steps():
    assert fit(Classifier(), max_steps=7).seen == pytest.approx(etas(7), abs=1e-6)


def test_the_smaller_of_both_limits():
    assert fit(Classifier(), max_epochs=3, max_steps=7).seen == pytest.approx(etas(7), abs=1e-6)
    assert fit(Classifier(), max_epochs=1, max_steps=7).seen == pytest.approx(etas(5), abs=1e-6)


def test_accumulation_does_not_double_it():
    module = fit(Classifier(), max_epochs=2, accumulate_grad_batches=2)
    steps = etas(6)  # three per epoch, the last one of a single batch
    expected = [steps[epoch * 3 + batch // 2] for epoch in range(2) for batch in range(5)]
    assert module.seen == pytest.approx(expected, abs=1e-6)


def test_resume_continues_it(tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=4)
    whole = fit(Classifier(), max_epochs=3, enable_checkpointing=True, callbacks=[keep])
    resumed = fit(Classifier(), max_epochs=3, ckpt_path=tmp_path / "step=4.ckpt")
    assert resumed.seen[0] == pytest.approx(etas(15)[4], abs=1e-6)
    assert whole.seen[-len(resumed.seen) :] == pytest.approx(resumed.seen, abs=1e-6)
    at_epoch_end = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(Classifier(), max_epochs=3, enable_checkpointing=True, callbacks=[at_epoch_end])
    resumed = fit(Classifier(), max_epochs=3, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert resumed.seen == pytest.approx(whole.seen[5:], abs=1e-6)
    torch.testing.assert_close(resumed.layer.weight, whole.layer.weight)


def test_a_resumed_training_may_be_longer(tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="end")
    fit(Classifier(), max_epochs=2, enable_checkpointing=True, callbacks=[keep])
    resumed = fit(Classifier(), max_epochs=4, ckpt_path=tmp_path / "end.ckpt")
    assert resumed.seen == pytest.approx(etas(20)[10:], abs=1e-6)


def test_weight_decay_temperature_and_clipping_follow_eta():
    module = fit(Classifier(), CyclicalFocalCallback(**RANGES), max_epochs=2, accumulate_grad_batches=2)
    assert len(module.stepped) == 6
    clipped = 0
    for eta, (decays, temperature, clip, norm) in zip(etas(6), module.stepped, strict=True):
        assert decays == pytest.approx([interpolate(eta, *RANGES["weight_decay"]), 0.0])
        assert temperature == pytest.approx(interpolate(eta, *RANGES["temperature"]))
        assert clip == pytest.approx(interpolate(eta, *RANGES["gradient_clip_val"]))
        assert norm <= clip * (1 + 1e-4)
        clipped += norm > clip * 0.99
    assert clipped, "the test data never met the limit"


def test_validation_is_plain_cross_entropy_at_temperature_one():
    module = Classifier()
    trainer = Trainer(**QUIET, max_epochs=2, val_check_interval=2, callbacks=[CyclicalFocalCallback(**RANGES)])
    trainer.fit(module, loader(), loader(1))
    ours, plain = zip(*module.validated, strict=True)
    assert len(ours) >= 4
    assert ours == pytest.approx(plain)
    assert module.temperature == 1
    assert module.seen == pytest.approx(etas(10), abs=1e-6)


class Normalised(Classifier):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def training_step(self, batch, batch_idx):
        return super().training_step((self.norm(batch[0]), batch[1]), batch_idx)


@pytest.mark.parametrize(("limits", "total"), [({}, 15), ({"max_steps": 12}, 12), ({"accumulate_grad_batches": 5}, 3)])
def test_stochastic_weight_averaging_adds_no_step(limits, total):
    """With batch norm it appends an epoch that only collects statistics."""
    swa = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2)
    module = fit(Normalised(), max_epochs=3, callbacks=[swa], **limits)
    repeat = limits.get("accumulate_grad_batches", 1)
    assert module.seen[: total * repeat] == pytest.approx(etas(total, repeat), abs=1e-6)
    assert set(module.seen[total * repeat :]) <= {1.0}
    assert module.criterion.progress == 1


@pytest.mark.parametrize("validates", [True, False])
def test_averaged_weights_leave_the_clock_alone(tmp_path, validates):
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    if not hasattr(callbacks, "WeightAveraging"):
        pytest.skip("this release of Lightning has no WeightAveraging")
    keep = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=4)
    ours = CyclicalFocalCallback(temperature=(0.5, 2.0))
    options = QUIET | {"enable_checkpointing": True, "max_epochs": 2}
    trainer = Trainer(**options, callbacks=[callbacks.WeightAveraging(), ours, keep])
    module, validated = Classifier(CyclicalFocalLoss(cyclical_in_eval=True)), []
    validate = lambda *_: validated.append((module.temperature.item(), module.criterion.eta.item()))  # noqa: E731
    module.validation_step = validate
    trainer.fit(module, loader(), loader(1) if validates else None)
    assert module.seen == pytest.approx(etas(10), abs=1e-6)
    assert (module.criterion.progress, module.criterion.eta, module.temperature) == (1, 1, 1)
    clock = torch.load(tmp_path / "step=4.ckpt", weights_only=True)["state_dict"]
    assert clock["criterion.progress"] == pytest.approx(3 / 9)
    assert clock["criterion.eta"] == pytest.approx(cyclical_eta(3 / 9))
    expected = [(1.0, 1.0), (1.0, etas(10)[4]), (1.0, 1.0)] if validates else []  # the first before training
    assert [pytest.approx(found, abs=1e-6) for found in validated] == expected


def test_manual_optimisation_with_its_own_count():
    module = fit(Classifier(automatic=False), CyclicalFocalCallback(total_steps=4), data=loader(4), max_epochs=2)
    assert module.seen == pytest.approx(etas(4, repeat=2), abs=1e-6)


class Counted(Classifier):
    """A classifier whose loss is made from counts, a hyperparameter that checkpoints contain."""

    def __init__(self, counts, **settings):
        super().__init__(CyclicalFocalLoss.from_counts(counts, **PLAIN, **settings))
        self.save_hyperparameters()
        self.steps, self.weighted = [], []

    def training_step(self, batch, batch_idx):
        self.weighted.append(self.criterion.weight_now() is not None)
        logits = self.layer(batch[0])
        loss = self.criterion(logits, batch[1])
        self.steps.append((logits.detach(), batch[1], loss.item()))
        return loss

    def on_before_optimizer_step(self, optimizer):
        self.steps[-1] += (self.layer.bias.grad.tolist(),)


@pytest.mark.parametrize(("scheme", "tau"), [(None, 1.0), ("balanced", 0.0), ("sqrt", 0.5), ("effective", 1.0)])
def test_counts_give_class_weights_and_the_prior(prior_loss, scheme, tau):
    module = fit(Counted([500, 40, 9], class_weight=scheme, tau=tau), max_epochs=2)
    for logits, target, loss, gradient in module.steps:
        value, expected = prior_loss(logits, target, [500, 40, 9], tau, scheme)
        assert loss == pytest.approx(value, rel=1e-5)
        assert gradient == pytest.approx(expected.sum(0), abs=1e-5)


def test_class_weights_start_late_also_after_resuming(tmp_path):
    settings = {"class_weight": "balanced", "weight_start": 0.5, "tau": 1.0}
    keep = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=5)
    whole = fit(Counted([9, 4, 1], **settings), max_epochs=3, enable_checkpointing=True, callbacks=[keep])
    assert whole.weighted == [step / 14 >= 0.5 for step in range(15)]
    resumed = fit(Counted([9, 4, 1], **settings), max_epochs=3, ckpt_path=tmp_path / "step=5.ckpt")
    assert resumed.weighted == whole.weighted[5:]
    torch.testing.assert_close(resumed.layer.weight, whole.layer.weight)
    loaded = Counted.load_from_checkpoint(tmp_path / "step=15.ckpt")
    torch.testing.assert_close(loaded.criterion.logit_offset, torch.tensor([9, 4, 1]).div(14).log())


def test_averaged_weights_leave_the_prior_alone():
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    if not hasattr(callbacks, "WeightAveraging"):
        pytest.skip("this release of Lightning has no WeightAveraging")
    module = Counted([9, 4, 1], class_weight="sqrt", tau=1.0)
    before = {name: buffer.clone() for name, buffer in module.criterion.named_buffers() if "weight" in name}
    before["logit_offset"] = module.criterion.logit_offset.clone()
    fit(module, max_epochs=2, callbacks=[callbacks.WeightAveraging()])
    for name, value in before.items():
        torch.testing.assert_close(getattr(module.criterion, name), value)


def test_counts_of_other_classes_are_refused():
    module = Counted([9, 1], tau=1.0)
    with pytest.raises(ValueError, match=r"logit_offset has shape \(2,\); for logits of shape \(4, 3\)"):
        fit(module, max_epochs=1)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.randn(4), 0


REFUSED = {
    "there is no CyclicalFocalLoss": {"module": lambda: Classifier(nn.CrossEntropyLoss())},
    "has total_steps=5": {"module": lambda: Classifier(CyclicalFocalLoss(total_steps=5))},
    "the trainer does not count it with manual optimization": {"module": lambda: Classifier(automatic=False)},
    "GradientAccumulationScheduler": {"callbacks": [GradientAccumulationScheduler({0: 1, 1: 2})]},
    "no known end": {"data": DataLoader(Endless(), batch_size=4), "max_epochs": 2},
    "no known end; set max_steps": {"max_time": timedelta(seconds=60), "max_epochs": -1},
    "no tensor of that name": {"module": lambda: without_temperature(), "callback": {"temperature": (1.0, 2.0)}},
    "no parameter group has a weight_decay": {"module": lambda: Undecayed(), "callback": {"weight_decay": (0.1, 0.2)}},
    "Lightning clips nothing": {
        "module": lambda: Classifier(automatic=False),
        "callback": {"gradient_clip_val": (0.1, 0.2), "total_steps": 5},
    },
}


class Undecayed(Classifier):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def without_temperature():
    module = Classifier()
    del module.temperature
    return module


@pytest.mark.parametrize("message", REFUSED)
def test_refused_before_the_first_batch(message):
    case = {"max_epochs": 1} | REFUSED[message]
    module = case.pop("module", Classifier)()
    with pytest.raises(ValueError, match=message):
        fit(module, CyclicalFocalCallback(**case.pop("callback", {})), **case)
    assert not module.seen


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, -1.0), (1.0, math.inf), 1.0, (1.0, 2.0, 3.0)])
def test_what_is_no_range_of_positive_values_is_refused(name, ends):
    with pytest.raises(ValueError, match=name):
        CyclicalFocalCallback(**{name: ends})


def test_a_missing_callback_warns():
    with pytest.warns(UserWarning, match="progress was never set"):
        Trainer(**QUIET, max_steps=100).fit(Classifier(), loader())


def test_a_second_fit_without_the_callback_warns():
    module = Classifier()
    fit(module, CyclicalFocalCallback(), max_steps=4)
    assert module.criterion.progress == 1
    with pytest.warns(UserWarning, match="progress was never set"):
        Trainer(**QUIET, max_steps=100).fit(module, loader())
