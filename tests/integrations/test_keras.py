"""Promise: the Keras losses are the torch ones on the torch and jax backends, and compiled training updates eta."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import cyclofocal
from cyclofocal.schedules import cyclical_eta

keras = pytest.importorskip("keras")
from cyclofocal.integrations.keras import (
    BinaryCyclicalFocalLoss,
    CyclicalFocalCallback,
    CyclicalFocalLoss,
)

EPOCHS, BATCHES = 4, 5
PLAIN = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0}
SETTINGS = [
    {"gamma_pos": gamma_pos, "gamma_neg": gamma_neg, "gamma_hc": gamma_hc, "label_smoothing": smoothing}
    for gamma_pos, gamma_neg, gamma_hc in ((0.0, 0.0, 0.0), (2.0, 2.0, 3.0), (0.5, 4.0, 2.0))
    for smoothing in (0.0, 0.1)
]


def test_on_the_other_backend():
    pytest.importorskip("jax")
    if keras.backend.backend() == "jax":
        pytest.skip("this is the other backend")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    run = subprocess.run(command, env=os.environ | {"KERAS_BACKEND": "jax"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert "passed, 1 skipped" in run.stdout


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("progress", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("soft", [False, True])
def test_softmax(settings, progress, soft):
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=4, size=(6, 5)).astype(np.float32)
    labels = generator.dirichlet(np.ones(5), 6).astype(np.float32) if soft else generator.integers(0, 5, 6)
    loss = CyclicalFocalLoss(**settings)
    loss.set_progress(progress)
    expected = cyclofocal.cyclical_focal_loss(
        torch.from_numpy(logits), torch.from_numpy(labels), eta=cyclical_eta(progress), **settings
    )
    assert float(loss(labels, logits)) == pytest.approx(expected.item(), rel=2e-6, abs=1e-6)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_sigmoid(settings, alpha):
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(scale=4, size=(4, 3)), generator.choice([0.0, 0.3, 1.0], (4, 3))
    logits, labels = logits.astype(np.float32), labels.astype(np.float32)
    loss = BinaryCyclicalFocalLoss(alpha=alpha, **settings)
    loss.set_progress(0.6)
    expected = cyclofocal.binary_cyclical_focal_loss(
        torch.from_numpy(logits), torch.from_numpy(labels), eta=cyclical_eta(0.6), alpha=alpha, **settings
    )
    assert float(loss(labels, logits)) == pytest.approx(expected.item(), rel=2e-6, abs=1e-6)


class Seen(keras.callbacks.Callback):  # type: ignore[name-defined]
    """The eta that the compiled step reports after every batch."""

    def __init__(self):
        super().__init__()
        self.etas, self.losses = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.etas.append(float(logs["eta"]))
        self.losses.append(float(logs["loss"]))


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(BATCHES * 8, 4)).astype(np.float32)
    return x, (x @ generator.normal(size=(4, 3))).argmax(1)


def _fit(data, optimizer=None, loss=None, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
    loss, seen = loss or CyclicalFocalLoss(), Seen()
    model.compile(optimizer or keras.optimizers.SGD(0.1), loss=loss, metrics=[loss.clock, "accuracy"])
    callbacks = [CyclicalFocalCallback(loss), seen]
    options = {"epochs": EPOCHS, "batch_size": 8} | options
    model.fit(*data, verbose=0, shuffle=False, callbacks=callbacks, **options)
    return model, seen


EXPECTED = [cyclical_eta(step / (EPOCHS * BATCHES - 1)) for step in range(EPOCHS * BATCHES)]


def test_eta_moves_in_compiled_training_and_it_learns(data):
    model, seen = _fit(data, keras.optimizers.Adam(0.1))
    assert seen.etas == pytest.approx(EXPECTED, abs=1e-6)
    assert model.get_metrics_result()["accuracy"] > 0.8


def test_the_loss_really_follows_it(data):
    """Use a learning rate of 0, so that the running mean of the losses is known."""
    model, seen = _fit(data, keras.optimizers.SGD(0.0))
    logits = torch.from_numpy(keras.ops.convert_to_numpy(model(data[0])).copy())
    target = torch.from_numpy(data[1])
    rows = [slice(8 * batch, 8 * batch + 8) for batch in range(BATCHES)] * EPOCHS
    values = [
        cyclofocal.cyclical_focal_loss(logits[row], target[row], eta=eta).item()
        for row, eta in zip(rows, EXPECTED, strict=True)
    ]
    means = [np.mean(values[step - step % BATCHES : step + 1]) for step in range(len(values))]
    assert seen.losses == pytest.approx(means, rel=1e-4, abs=1e-6)


def test_validation_and_inference_use_plain_cross_entropy(data):
    for loss in (CyclicalFocalLoss(), BinaryCyclicalFocalLoss(alpha=0.25)):
        target = data[1] if isinstance(loss, CyclicalFocalLoss) else np.eye(3, dtype=np.float32)[data[1]]
        model, seen = _fit((data[0], target), loss=loss, validation_data=(data[0], target))
        assert seen.etas == pytest.approx(EXPECTED, abs=1e-6)
        logits = torch.from_numpy(keras.ops.convert_to_numpy(model(data[0])).copy())
        binary = torch.nn.functional.binary_cross_entropy_with_logits
        theirs = torch.nn.functional.cross_entropy if loss.name.startswith("cyclical") else binary
        expected = pytest.approx(theirs(logits, torch.from_numpy(target)).item(), rel=1e-5)
        assert model.history.history["val_loss"][-1] == expected
        assert model.evaluate(data[0], target, verbose=0, return_dict=True)["loss"] == expected


def test_binary_labels_may_lack_the_last_dimension():
    labels, logits = np.array([1.0, 0.0, 1.0, 0.0], np.float32), np.array([[3.0], [-3.0], [2.0], [-1.0]], np.float32)
    loss = BinaryCyclicalFocalLoss(gamma_pos=0, gamma_neg=0, gamma_hc=0)
    loss.set_progress(0.5)
    theirs = keras.losses.BinaryCrossentropy(from_logits=True)(labels, logits)
    assert float(loss(labels, logits)) == pytest.approx(float(theirs), rel=1e-5)
    with pytest.raises(ValueError, match=r"labels have shape \(4,\), logits \(4, 3\)"):
        loss(labels, np.repeat(logits, 3, 1))


@pytest.mark.parametrize(("dtype", "rel"), [("float32", 1e-5), ("bfloat16", 2e-2), ("float16", 2e-3)])
def test_a_masked_class_costs_nothing(dtype, rel):
    loss = CyclicalFocalLoss(dtype=dtype)
    loss.set_progress(0.6)
    logits = torch.tensor([[1.0, -torch.inf, 2.0]])
    expected = cyclofocal.cyclical_focal_loss(logits, torch.tensor([0]), eta=cyclical_eta(0.6))
    assert float(loss(np.array([0]), logits.numpy())) == pytest.approx(expected.item(), rel=rel)


@pytest.mark.parametrize(("dtype", "index"), [("bfloat16", 257), ("bfloat16", 3999), ("float16", 2049)])
def test_half_precision_does_not_round_a_class_index(dtype, index):
    """The logit of this class alone is high, so any other class would cost several times as much."""
    logits = np.zeros((1, 4000), np.float32)
    logits[0, index] = 16.0
    loss = CyclicalFocalLoss(dtype=dtype, ignore_class=255)
    loss.set_progress(0.6)
    for labels in (np.array([index]), np.array([[index]], np.int64), np.array([index], np.float32)):
        assert float(loss(labels, logits)) < 0.01
    with pytest.raises(ValueError, match=f"labels are {dtype}, which rounds the numbers of 4000 classes"):
        loss(keras.ops.cast(np.array([index]), dtype), logits)


def test_a_saved_model_loads_and_the_history_stays_readable(data, tmp_path):
    model, seen = _fit(data, validation_data=data)
    assert [float(eta) for eta in model.history.history["eta"]] == pytest.approx(seen.etas[BATCHES - 1 :: BATCHES])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again.loss) is CyclicalFocalLoss
    np.testing.assert_allclose(again.predict(data[0], verbose=0), model.predict(data[0], verbose=0), rtol=1e-6)


@pytest.mark.parametrize("ignore_class", [None, 1, 255])
def test_weights_and_what_is_ignored_count_as_in_torch(ignore_class):
    generator = np.random.default_rng(0)
    logits, target = generator.normal(size=(4, 6, 3)).astype(np.float32), generator.integers(0, 3, (4, 6))
    target[0, :2] = 0 if ignore_class is None else ignore_class
    factors = np.array([0.5, 1.0, 2.0], np.float32)
    loss = CyclicalFocalLoss(ignore_class=ignore_class, gamma_hc=2.0)
    loss.set_progress(0.6)
    expected = cyclofocal.cyclical_focal_loss(
        torch.from_numpy(logits).movedim(-1, 1),
        torch.from_numpy(target),
        torch.from_numpy(factors),
        eta=cyclical_eta(0.6),
        gamma_hc=2.0,
        ignore_index=-100 if ignore_class is None else ignore_class,
    ).item()
    weights = factors[np.minimum(target, 2)]
    assert float(loss(target, logits, weights)) == pytest.approx(expected, rel=1e-5)
    assert float(loss(target[..., None], logits, weights[..., None])) == pytest.approx(expected, rel=1e-5)
    by_row = np.array([1.0, 0.0, 2.0, 1.0], np.float32)
    everywhere = np.broadcast_to(by_row[:, None], (4, 6))
    assert float(loss(target, logits, by_row)) == pytest.approx(float(loss(target, logits, everywhere)), rel=1e-6)


def test_class_weights_of_fit_are_those_of_torch(data):
    model, seen = _fit(data, keras.optimizers.SGD(0.0), class_weight={0: 0.5, 1: 1.0, 2: 4.0}, epochs=1, batch_size=40)
    logits = torch.from_numpy(keras.ops.convert_to_numpy(model(data[0])).copy())
    weight = torch.tensor([0.5, 1.0, 4.0])
    expected = cyclofocal.cyclical_focal_loss(logits, torch.from_numpy(data[1]), weight, eta=1.0)
    assert seen.losses == pytest.approx([expected.item()], rel=1e-5)


@pytest.mark.parametrize(("scheme", "tau"), [(None, 1.0), ("balanced", 0.0), ("sqrt", 0.5), ("effective", 1.0)])
def test_counts_give_class_weights_and_the_prior(data, prior_loss, scheme, tau):
    """Train one step on all rows: loss and step of the bias; evaluation has the weights, but not the prior."""
    loss = CyclicalFocalLoss.from_counts([500, 40, 9], class_weight=scheme, tau=tau, **PLAIN)
    still, _ = _fit(data, keras.optimizers.SGD(0.0), CyclicalFocalLoss(), epochs=1)
    logits = keras.ops.convert_to_numpy(still(data[0]))
    value, gradient = prior_loss(logits, data[1], [500, 40, 9], tau, scheme)
    model, seen = _fit(data, loss=loss, epochs=1, batch_size=len(data[1]))
    assert seen.losses == pytest.approx([value], rel=1e-5)
    np.testing.assert_allclose(model.get_weights()[1], -0.1 * gradient.sum(0), atol=1e-6)
    trained = keras.ops.convert_to_numpy(model(data[0]))
    plain = prior_loss(trained, data[1], [500, 40, 9], 0.0, scheme)[0]
    assert model.evaluate(*data, batch_size=64, verbose=0, return_dict=True)["loss"] == pytest.approx(plain, rel=1e-5)


def test_class_weights_start_late(data):
    """Use a learning rate of 0; the mean over an epoch's batches is known."""
    loss = CyclicalFocalLoss.from_counts([500, 40, 9], class_weight="sqrt", weight_start=0.5, **PLAIN)
    model, seen = _fit(data, keras.optimizers.SGD(0.0), loss)
    logits = torch.from_numpy(keras.ops.convert_to_numpy(model(data[0])).copy())
    values, target = [], torch.from_numpy(data[1])
    for step in range(EPOCHS * BATCHES):
        rows = slice(8 * (step % BATCHES), 8 * (step % BATCHES) + 8)
        weight = 1 / torch.tensor([500.0, 40, 9]).sqrt() if step / (EPOCHS * BATCHES - 1) >= 0.5 else None
        values.append(torch.nn.functional.cross_entropy(logits[rows], target[rows], weight).item())
    means = [np.mean(values[step - step % BATCHES : step + 1]) for step in range(len(values))]
    assert seen.losses == pytest.approx(means, rel=1e-4)


def test_weights_of_rows_and_classes_multiply(data):
    loss = CyclicalFocalLoss(weight=[0.5, 1.0, 4.0], ignore_class=1, **PLAIN)
    loss.set_progress(0.5)
    generator = np.random.default_rng(0)
    logits, target = generator.normal(size=(6, 3)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2])
    rows = generator.uniform(0.5, 2, 6).astype(np.float32)
    log_p = torch.from_numpy(logits).log_softmax(1).numpy()[np.arange(6), target]
    factors = rows * np.array([0.5, 0.0, 4.0])[target]
    assert float(loss(target, logits, rows)) == pytest.approx(-(factors * log_p).sum() / factors.sum(), rel=1e-5)


def test_positives_and_samples_give_the_binary_loss(data):
    settings = {"class_weight": "balanced", "tau": 1.0, **PLAIN}
    loss = BinaryCyclicalFocalLoss.from_counts([9, 40, 50], 100, **settings)
    target = np.eye(3, dtype=np.float32)[data[1]]
    model, seen = _fit((data[0], target), keras.optimizers.SGD(0.0), loss, epochs=1, batch_size=len(target))
    logits = keras.ops.convert_to_numpy(model(data[0])).astype(np.float64)
    share = np.array([0.09, 0.4, 0.5])
    p = 1 / (1 + (1 - share) / share * np.exp(-logits))
    rows = 2 * (1 - share) * target * np.log(p) + 2 * share * (1 - target) * np.log(1 - p)
    assert seen.losses == pytest.approx([-rows.mean()], rel=1e-5)


@pytest.mark.parametrize(("kind", "samples"), [(CyclicalFocalLoss, {}), (BinaryCyclicalFocalLoss, {"samples": 1010})])
def test_label_smoothing_fits_the_prior_as_in_torch(kind, samples):
    torch_kind = getattr(cyclofocal, kind.__name__)
    for settings in ({}, PLAIN):
        given = {"counts": [1000, 10], "smoothing_odds": 10.0, **samples, **settings}
        assert kind.from_counts(**given).label_smoothing == torch_kind.from_counts(**given).label_smoothing > 0
    with pytest.warns(UserWarning, match=r"label_smoothing is 0\.1, .* the rarest is predicted, or nearly"):
        loss = kind.from_counts([1000, 10], label_smoothing=0.1, **samples, **PLAIN)
    assert loss.label_smoothing == 0.1


REFUSED: dict = {
    "counts is 0 for class 1": {"counts": [9, 0]},
    r"counts holds 0\.5 for class 0": {"counts": [0.5, 1]},
    "class_weight is 'inverse'": {"counts": [9, 1], "class_weight": "inverse"},
    r"tau is -1\.0": {"counts": [9, 1], "tau": -1.0},
    r"weight_start is 0\.8, but there is no class weight": {"counts": [9, 1], "weight_start": 0.8},
    "weight_start is 8; it must lie": {"counts": [9, 1], "class_weight": "sqrt", "weight_start": 8},
    r"pos_weight is \[2\]; a softmax has no positive side": {"counts": [9, 1], "pos_weight": [2]},
    r"logit_offset is \[1, inf\]": {"counts": [9, 1], "class_weight": "sqrt", "logit_offset": [1, np.inf]},
    "logit_offset is given, and the counts make one": {"counts": [9, 1], "logit_offset": [1, 2]},
    "weight is 2; it must hold one finite number per class": {"counts": [9, 1], "weight": 2},
}


@pytest.mark.parametrize("message", REFUSED)
def test_counts_that_do_not_fit_are_refused(message):
    with pytest.raises(ValueError, match=message):
        CyclicalFocalLoss.from_counts(**REFUSED[message])


@pytest.mark.parametrize("settings", [{"tau": 1.0}, {"class_weight": "sqrt"}])
def test_counts_of_other_classes_are_refused(data, settings):
    with pytest.raises(ValueError, match=r"holds 2 numbers for logits of 3 classes"):
        _fit(data, loss=CyclicalFocalLoss.from_counts([9, 1], **settings))
    with pytest.raises(ValueError, match=r"holds 2 numbers for logits of 3 classes"):
        _fit((data[0], np.eye(3)[data[1]]), loss=BinaryCyclicalFocalLoss.from_counts([9, 1], 10, **settings))


@pytest.mark.parametrize("steps", [2, 5])
def test_every_step_of_an_execution_has_its_eta(data, steps):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(BATCHES * 8, 4)).astype(np.float32)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3, kernel_initializer="zeros")])
    loss = CyclicalFocalLoss()
    model.compile(keras.optimizers.SGD(0.1), loss=loss, metrics=[loss.clock], steps_per_execution=steps)
    seen = Seen()
    options = {"epochs": EPOCHS, "batch_size": 8, "verbose": 0, "shuffle": False}
    if keras.backend.backend() == "torch":
        with pytest.raises(ValueError, match="`steps_per_execution` must be 1"):  # Keras' own
            model.fit(x, data[1], callbacks=[CyclicalFocalCallback(loss), seen], **options)
        return
    model.fit(x, data[1], callbacks=[CyclicalFocalCallback(loss), seen], **options)
    ends = [*range(steps - 1, BATCHES - 1, steps), BATCHES - 1]
    assert seen.etas == pytest.approx([EXPECTED[BATCHES * epoch + end] for epoch in range(EPOCHS) for end in ends])
    weight = torch.zeros(4, 3, requires_grad=True)
    bias = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=0.1)
    for step, eta in enumerate(EXPECTED):
        rows = slice(8 * (step % BATCHES), 8 * (step % BATCHES) + 8)
        optimizer.zero_grad()
        logits = torch.from_numpy(x[rows]) @ weight + bias
        cyclofocal.cyclical_focal_loss(logits, torch.from_numpy(data[1][rows]), eta=eta).backward()
        optimizer.step()
    np.testing.assert_allclose(model.get_weights()[0], weight.detach(), rtol=1e-4, atol=1e-6)


def test_an_initial_epoch_continues_the_cycle(data):
    _, seen = _fit(data, initial_epoch=2)
    assert seen.etas == pytest.approx(EXPECTED[2 * BATCHES :], abs=1e-6)


def test_gradient_accumulation_does_not_double_it(data):
    _, seen = _fit(data, keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    assert seen.etas == pytest.approx(EXPECTED, abs=1e-6)


def test_settings_survive_a_configuration():
    for loss in (
        CyclicalFocalLoss(gamma_hc=2.0, cyclical_factor=2.0, ignore_class=255),
        BinaryCyclicalFocalLoss(alpha=0.25),
        CyclicalFocalLoss.from_counts([9, 1], class_weight="sqrt", tau=1.0, weight_start=0.8),
        BinaryCyclicalFocalLoss.from_counts([9, 1], 10, class_weight="sqrt", tau=1.0),
    ):
        again = keras.losses.deserialize(keras.losses.serialize(loss))
        assert type(again) is type(loss)
        assert again.get_config() == loss.get_config()


def test_progress_that_is_never_set_warns(data):
    with pytest.raises(RuntimeError, match="progress of this loss is never set"):
        CyclicalFocalLoss()([0], [[1.0, 2.0]])
    model, loss = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)]), CyclicalFocalLoss()
    model.compile(loss=loss)
    with pytest.raises(ValueError, match=r"loss\.clock is not among the metrics"):
        model.fit(*data, verbose=0, callbacks=[CyclicalFocalCallback(loss)])


def test_a_later_fit_without_the_callback_is_refused(data):
    loss = CyclicalFocalLoss()
    model, _ = _fit(data, loss=loss, epochs=1)
    weights = model.get_weights()[0]
    with pytest.raises(RuntimeError, match="progress of this loss is never set"):
        model.fit(*data, verbose=0)
    with pytest.raises(RuntimeError, match="progress of this loss is never set"):
        model.fit(*data, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], weights)
    model.evaluate(*data, verbose=0)
    loss.set_progress(0.25)
    history = model.fit(*data, verbose=0).history
    assert history["eta"] == [0]
    history = model.fit(*data, verbose=0, callbacks=[CyclicalFocalCallback(loss)]).history
    assert history["eta"] == [1]


def test_a_callback_that_fit_is_not_given_is_noticed(data):
    model, loss = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)]), CyclicalFocalLoss()
    model.compile(loss=loss, metrics=[loss.clock])
    CyclicalFocalCallback(loss)
    with pytest.raises(RuntimeError, match="progress of this loss is never set"):
        model.fit(*data, verbose=0)


def test_a_wrong_setting_is_refused():
    with pytest.raises(ValueError, match="gamma_pos is -1"):
        CyclicalFocalLoss(gamma_pos=-1)
    with pytest.raises(ValueError, match="alpha is 2"):
        BinaryCyclicalFocalLoss(alpha=2)
    with pytest.raises(ValueError, match=r"cyclical_factor is 0\.5"):
        CyclicalFocalLoss(cyclical_factor=0.5)
