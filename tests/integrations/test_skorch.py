"""Promise: in skorch eta follows the epochs of the history, through checkpoints and accumulation."""

import numpy as np
import pytest
import torch
from torch import nn

from cyclofocal import BinaryCyclicalFocalLoss, CyclicalFocalLoss
from cyclofocal.schedules import cyclical_eta

skorch = pytest.importorskip("skorch")
from sklearn.base import clone
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier
from skorch.callbacks import Callback, Checkpoint, LoadInitState

from cyclofocal.integrations.skorch import CyclicalFocalCallback, probabilities

EPOCHS, BATCHES = 4, 5
PLAIN = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0}
EXPECTED = [cyclical_eta(step / (EPOCHS * BATCHES - 1)) for step in range(EPOCHS * BATCHES)]


class Batches(Callback):
    """Callback that records eta after every training batch."""

    def initialize(self):
        self.seen = []
        return self

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            self.seen.append(net.criterion_.eta.item())


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(BATCHES * 8, 4)).astype(np.float32)
    return x, (x @ generator.normal(size=(4, 3))).argmax(1)


def _net(*callbacks, kind=NeuralNetClassifier, outputs=3, **settings):
    torch.manual_seed(0)
    settings = {"criterion": CyclicalFocalLoss, "max_epochs": EPOCHS, "callbacks": [*callbacks, Batches()]} | settings
    return kind(
        nn.Linear(4, outputs) if outputs > 1 else nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)),
        lr=0.1,
        batch_size=8,
        train_split=None,
        predict_nonlinearity=probabilities,
        verbose=0,
        **settings,
    )


def _seen(net):
    return dict(net.callbacks_)["Batches"].seen


def test_eta_follows_the_batches_and_probabilities_are_some(data):
    net = _net(CyclicalFocalCallback(), criterion__gamma_hc=2.0).fit(*data)
    assert _seen(net) == pytest.approx(EXPECTED, abs=1e-6)
    assert net.criterion_.gammas["gamma_hc"] == 2
    np.testing.assert_allclose(net.predict_proba(data[0]).sum(1), 1, rtol=1e-6)


def test_validation_is_plain_cross_entropy(data):
    net = _net(CyclicalFocalCallback()).set_params(train_split=skorch.dataset.ValidSplit(5), lr=0.0).fit(*data)
    split = net.get_split_datasets(*data)[1]
    rows = torch.tensor(split.indices)
    logits = net.forward(data[0])[rows]
    expected = torch.nn.functional.cross_entropy(logits, torch.as_tensor(data[1])[rows])
    assert net.history[-1]["valid_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_checkpoint_continues_the_cycle(data, tmp_path):
    checkpoint = {"dirname": str(tmp_path), "monitor": None}
    whole = _net(CyclicalFocalCallback()).fit(*data)
    clock = CyclicalFocalCallback(total_epochs=EPOCHS)
    halted = _net(clock, Checkpoint(**checkpoint), max_epochs=1).fit(*data)
    load = LoadInitState(Checkpoint(**checkpoint))
    resumed = _net(load, CyclicalFocalCallback(total_epochs=EPOCHS), max_epochs=EPOCHS - 1).fit(*data)
    assert _seen(halted) + _seen(resumed) == pytest.approx(EXPECTED, abs=1e-6)
    torch.testing.assert_close(resumed.module_.weight, whole.module_.weight)


def test_another_partial_fit_is_another_cycle(data):
    net = _net(CyclicalFocalCallback()).fit(*data).partial_fit(*data)
    assert _seen(net) == pytest.approx(EXPECTED * 2, abs=1e-6)


def test_gradient_accumulation_does_not_double_it(data):
    class Accumulating(NeuralNetClassifier):
        def train_step(self, batch, **fit_params):
            result = self.train_step_single(batch, **fit_params)
            if len(self.history[-1]["batches"]) % 2 == 0:
                self.optimizer_.step()
                self.optimizer_.zero_grad()
            return result

    net = _net(CyclicalFocalCallback(), kind=Accumulating).fit(*data)
    assert _seen(net) == pytest.approx(EXPECTED, abs=1e-6)


def test_the_binary_net(data):
    net = _net(CyclicalFocalCallback(), kind=NeuralNetBinaryClassifier, outputs=1, criterion=BinaryCyclicalFocalLoss)
    p = net.fit(data[0], (data[1] == 0).astype(np.float32)).predict_proba(data[0])
    assert p.shape == (len(data[0]), 2)
    np.testing.assert_allclose(p[:, 1], net.forward(data[0]).sigmoid(), rtol=1e-5)


def _from_counts(counts, **settings):
    """Make a net whose criterion is made from the counts, by skorch itself."""
    settings = {f"criterion__{name}": value for name, value in {"counts": counts, **PLAIN, **settings}.items()}
    return _net(CyclicalFocalCallback(), criterion=CyclicalFocalLoss.from_counts, **settings)


@pytest.mark.parametrize(("scheme", "tau"), [(None, 1.0), ("balanced", 0.0), ("sqrt", 0.5), ("effective", 1.0)])
def test_counts_give_class_weights_and_the_prior(data, prior_loss, scheme, tau):
    """A step of gradient descent on all rows moves the bias by the independent gradient, also of a cloned net."""
    net = clone(_from_counts([90, 9, 30], class_weight=scheme, tau=tau)).set_params(batch_size=40, max_epochs=1)
    net.initialize()
    logits, bias = net.forward(data[0]), net.module_.bias.detach().clone()
    value, gradient = prior_loss(logits, data[1], [90, 9, 30], tau, scheme)
    net.partial_fit(*data)
    assert net.history[-1]["train_loss"] == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(net.module_.bias.detach(), bias.numpy() - 0.1 * gradient.sum(0), atol=1e-6)
    logits = net.forward(data[0])
    np.testing.assert_allclose(net.predict_proba(data[0]), logits.softmax(1), rtol=1e-6)  # without the prior


def test_class_weights_start_late(data):
    net = _from_counts([90, 9, 30], class_weight="balanced", weight_start=0.5)
    weighted, forward = [], CyclicalFocalLoss.forward

    def watched(self, *args):
        weighted.append(self.weight_now() is not None)
        return forward(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CyclicalFocalLoss, "forward", watched)
        net.fit(*data)
    assert weighted == [step / (EPOCHS * BATCHES - 1) >= 0.5 for step in range(EPOCHS * BATCHES)]


def test_counts_that_do_not_fit_are_refused(data):
    for message, settings in {
        "counts is 0 for class 1": {"counts": [9, 0, 1]},
        r"counts holds 0\.5 for class 0": {"counts": [0.5, 1, 1]},
        r"tau is -1\.0": {"counts": [9, 1, 1], "tau": -1.0},
        r"logit_offset has shape \(2,\); for logits of shape \(8, 3\)": {"counts": [9, 1], "tau": 1.0},
    }.items():
        with pytest.raises(ValueError, match=message):
            _from_counts(**settings).fit(*data)


def test_the_binary_net_predicts_without_the_prior(data):
    labels = np.float32(data[1] == 0)
    criterion = BinaryCyclicalFocalLoss.from_counts(5, 40, tau=1.0, **PLAIN)
    settings = {
        f"criterion__{name}": value for name, value in {"counts": 5, "samples": 40, "tau": 1.0, **PLAIN}.items()
    }
    net = _net(
        CyclicalFocalCallback(),
        kind=NeuralNetBinaryClassifier,
        outputs=1,
        criterion=BinaryCyclicalFocalLoss.from_counts,
        **settings,
    ).fit(data[0], labels)
    assert torch.equal(net.criterion_.logit_offset, criterion.logit_offset)
    np.testing.assert_allclose(net.predict_proba(data[0])[:, 1], net.forward(data[0]).sigmoid(), rtol=1e-5)


def test_a_criterion_of_another_name_is_refused_with_its_name(data):
    class Renamed(NeuralNetClassifier):
        def initialize_criterion(self):
            self.my_loss_ = CyclicalFocalLoss()
            return self

    with pytest.raises(ValueError, match=r"Renamed has no criterion_.* in place of my_loss_"):
        _net(CyclicalFocalCallback(), kind=Renamed).fit(*data)


def test_a_wrong_call_is_refused(data):
    with pytest.raises(ValueError, match="total_epochs is 0"):
        CyclicalFocalCallback(total_epochs=0)
    with pytest.raises(ValueError, match='predict_nonlinearity is "auto"'):
        _net(CyclicalFocalCallback()).set_params(predict_nonlinearity="auto").fit(*data)
    with pytest.raises(ValueError, match="has total_steps=10"):
        _net(CyclicalFocalCallback(), criterion__total_steps=10).fit(*data)
    with pytest.raises(TypeError, match="CrossEntropyLoss"):
        _net(CyclicalFocalCallback(), criterion=nn.CrossEntropyLoss).fit(*data)


def test_more_epochs_than_said_stay_at_the_end_and_say_so(data):
    with pytest.warns(UserWarning, match="more optimiser steps than total_steps=10"):
        net = _net(CyclicalFocalCallback(total_epochs=2), max_epochs=3).fit(*data)
    assert net.criterion_.progress == 1


def test_a_missing_callback_warns(data):
    with pytest.warns(UserWarning, match="progress was never set"):
        _net(max_epochs=100 // BATCHES).fit(*data)


def test_a_second_training_without_the_callback_warns(data):
    net = _net(CyclicalFocalCallback()).fit(*data)
    net.callbacks_ = [pair for pair in net.callbacks_ if not isinstance(pair[1], CyclicalFocalCallback)]
    with pytest.warns(UserWarning, match="progress was never set"):
        net.partial_fit(*data, epochs=100 // BATCHES)
