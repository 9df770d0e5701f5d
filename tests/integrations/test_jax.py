"""Promise: the JAX functions are the torch ones, in value and gradient, and trace."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cyclofocal
from cyclofocal import schedules

jax = pytest.importorskip("jax")
import jax.numpy as jnp

from cyclofocal.integrations import jax as ours

GAMMA = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0])
SETTINGS = st.fixed_dictionaries(
    {"gamma_pos": GAMMA, "gamma_neg": GAMMA, "gamma_hc": GAMMA, "label_smoothing": st.sampled_from([0.0, 0.1])}
)
ETA = st.floats(0, 1, width=32)


def _check(theirs, loss, logits, labels, eta, options):
    """Value and gradient, both in float32."""
    there = torch.tensor(logits, requires_grad=True)
    expected = theirs(there, torch.from_numpy(labels), eta=eta, reduction="none", **options)
    expected.sum().backward()
    rows = loss(jnp.asarray(logits), jnp.asarray(labels), eta=eta, **options)
    gradient = jax.grad(lambda z: loss(z, jnp.asarray(labels), eta=eta, **options).sum())(jnp.asarray(logits))
    np.testing.assert_allclose(rows, expected.detach(), rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(gradient, there.grad, rtol=1e-5, atol=1e-6)


@settings(max_examples=12)
@given(st.integers(0, 1000), st.booleans(), ETA, SETTINGS)
def test_softmax(seed, soft, eta, options):
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=4, size=(6, 5)).astype(np.float32)
    labels = generator.dirichlet(np.ones(5), 6).astype(np.float32) if soft else generator.integers(0, 5, 6)
    _check(cyclofocal.cyclical_focal_loss, ours.cyclical_focal_loss, logits, labels, eta, options)


@pytest.mark.parametrize("gamma_pos", [0.5, 2.0])
def test_a_masked_class_costs_nothing(gamma_pos):
    logits = np.array([[1.0, -np.inf, 2.0]], np.float32)
    options = {"gamma_pos": gamma_pos}
    _check(cyclofocal.cyclical_focal_loss, ours.cyclical_focal_loss, logits, np.array([0]), 0.5, options)


@settings(max_examples=12)
@given(st.integers(0, 1000), st.sampled_from([None, 0.25]), ETA, SETTINGS)
def test_sigmoid(seed, alpha, eta, options):
    generator = np.random.default_rng(seed)
    logits, labels = generator.normal(scale=4, size=(4, 3)), generator.choice([0.0, 0.3, 1.0], (4, 3))
    options = options | {"alpha": alpha}
    labels = labels.astype(np.float32)
    _check(
        cyclofocal.binary_cyclical_focal_loss,
        ours.binary_cyclical_focal_loss,
        logits.astype(np.float32),
        labels,
        eta,
        options,
    )


PLAIN = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0}


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_the_prior_in_a_jitted_step(prior_loss, tau):
    """Take one step of gradient descent on all rows; the offset may be traced."""
    generator, counts = np.random.default_rng(0), [500, 40, 9]
    x, y = generator.normal(size=(32, 4)).astype(np.float32), generator.integers(0, 3, 32)
    offset = tau * cyclofocal.log_prior(counts).numpy()

    def loss(weights, offset):
        return ours.cyclical_focal_loss(x @ weights, y, eta=0.5, logit_offset=offset, **PLAIN).mean()

    weights = jnp.asarray(generator.normal(size=(4, 3)), jnp.float32)
    value, gradient = prior_loss(x @ weights, y, counts, tau)
    closed_over = jax.jit(jax.value_and_grad(lambda weights: loss(weights, offset)))(weights)
    for found in (jax.jit(jax.value_and_grad(loss))(weights, offset), closed_over):
        assert found[0] == pytest.approx(value, rel=1e-5)
        np.testing.assert_allclose(weights - found[1], weights - x.T @ gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_the_offset_is_that_of_torch(binary):
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(2, 6, 3)).astype(np.float32), generator.integers(0, 2, (2, 6, 3))
    offset = np.array([0.5, -2.0, 3.0], np.float32)
    if binary:
        rows = ours.binary_cyclical_focal_loss(logits, labels, eta=0.3, alpha=0.25, logit_offset=offset)
        shifted, soft = torch.from_numpy(logits + offset), torch.from_numpy(labels)
        expected = cyclofocal.binary_cyclical_focal_loss(shifted, soft, eta=0.3, alpha=0.25, reduction="none")
    else:
        rows = ours.cyclical_focal_loss(logits, labels[..., 0], eta=0.3, label_smoothing=0.1, logit_offset=offset)
        shifted, index = torch.from_numpy(logits + offset).movedim(-1, 1), torch.from_numpy(labels[..., 0])
        expected = cyclofocal.cyclical_focal_loss(shifted, index, eta=0.3, label_smoothing=0.1, reduction="none")
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)


def test_an_offset_that_does_not_fit_is_refused():
    logits, labels = jnp.zeros((4, 3)), jnp.zeros((4, 3))
    for loss in (ours.cyclical_focal_loss, ours.binary_cyclical_focal_loss):
        with pytest.raises(ValueError, match=r"logit_offset has shape \(2,\); for logits of shape \(4, 3\)"):
            loss(logits, labels, eta=0.5, logit_offset=np.zeros(2))
        with pytest.raises(ValueError, match="logit_offset holds a value that is not finite"):
            loss(logits, labels, eta=0.5, logit_offset=[0.0, -np.inf, 1.0])
        half = logits.astype(jnp.bfloat16)
        assert loss(half, half, eta=0.5, logit_offset=np.array([0.5, 1.0, 2.0])).dtype == jnp.bfloat16


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_far_out_it_stays_finite(gamma):
    logits = jnp.array([[200.0, -200, 0], [0, 0, 1e4]])
    for loss, labels in (
        (ours.cyclical_focal_loss, jnp.array([0, 0])),
        (ours.binary_cyclical_focal_loss, jnp.array([[1, 0, 1], [1, 0, 0]])),
    ):
        options = {"eta": 0.3, "gamma_pos": gamma, "gamma_neg": gamma, "label_smoothing": 0.1}
        value, gradient = jax.value_and_grad(lambda z: loss(z, labels, **options).sum())(logits)  # noqa: B023
        assert jnp.isfinite(value)
        assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("cyclical_factor", [1.0, 2.0, 4.0])
def test_schedule(cyclical_factor):
    progress = np.linspace(0, 1, 41, dtype=np.float32)
    expected = schedules.cyclical_eta(torch.from_numpy(progress), cyclical_factor)
    got = jax.jit(ours.cyclical_eta, static_argnums=1)(progress, cyclical_factor)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert jnp.isnan(ours.cyclical_eta(1.5))


def test_a_jitted_training_moves_eta_and_learns():
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(64, 4)), jnp.float32)
    y = (x @ generator.normal(size=(4, 3))).argmax(1)
    steps, etas = 40, []

    @jax.jit
    def update(weights, step):
        eta = ours.cyclical_eta(step / (steps - 1))
        gradient = jax.grad(lambda w: ours.cyclical_focal_loss(x @ w, y, eta=eta).mean())(weights)
        return weights - gradient, eta

    weights = jnp.zeros((4, 3))
    for step in range(steps):
        weights, eta = update(weights, step)
        etas.append(eta.item())
    expected = [schedules.cyclical_eta(step / (steps - 1)) for step in range(steps)]
    assert etas == pytest.approx(expected, abs=1e-6)
    assert ((x @ weights).argmax(1) == y).mean() > 0.9


def test_eta_of_a_step_depends_on_its_number_only():
    generator = np.random.default_rng(0)
    x, y, steps = (
        jnp.asarray(generator.normal(size=(64, 4)), jnp.float32),
        jnp.asarray(generator.integers(0, 3, 64)),
        12,
    )

    @jax.jit
    def gradient(weights, step, rows):
        eta = ours.cyclical_eta(step / (steps - 1))
        return jax.grad(lambda w: ours.cyclical_focal_loss(x[rows] @ w, y[rows], eta=eta).mean())(weights)

    def train(weights, begin, end, parts):
        for step in range(begin, end):
            weights -= sum(gradient(weights, step, rows) for rows in jnp.split(jnp.arange(64), parts)) / parts
        return weights

    whole = train(jnp.zeros((4, 3)), 0, steps, 1)
    resumed = train(train(jnp.zeros((4, 3)), 0, 5, 1), 5, steps, 1)
    np.testing.assert_array_equal(resumed, whole)
    np.testing.assert_allclose(train(jnp.zeros((4, 3)), 0, steps, 4), whole, atol=1e-5)


@pytest.mark.parametrize("setting", ["gamma_pos", "gamma_neg", "gamma_hc", "label_smoothing", "alpha"])
def test_a_traced_setting_is_refused_by_name(setting):
    labels = jnp.array([[0.0, 1.0, 0.0]])
    losses = [ours.binary_cyclical_focal_loss] + [ours.cyclical_focal_loss] * (setting != "alpha")
    for loss in losses:
        traced = jax.jit(lambda value: loss(labels, labels, eta=0.5, **{setting: value}))  # noqa: B023
        with pytest.raises(TypeError, match=f"{setting} is traced; only eta may be"):
            traced(0.5)
    with pytest.raises(TypeError, match="cyclical_factor is traced"):
        jax.jit(ours.cyclical_eta)(0.5, 2.0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_as_such_unless_cast(dtype):
    logits, labels = jnp.array([[20.0, 0.0, -1.0], [5.0, 1.0, 2.0]], dtype), jnp.array([0, 1])
    rows = ours.cyclical_focal_loss(logits, labels, eta=0.5)
    assert rows.dtype == dtype
    exact = torch.tensor(np.asarray(logits, np.float64))
    expected = cyclofocal.cyclical_focal_loss(exact, torch.from_numpy(np.array(labels)), eta=0.5, reduction="none")
    np.testing.assert_allclose(rows.astype(jnp.float32), expected, rtol=1e-2, atol=1e-2)
    cast = ours.cyclical_focal_loss(logits.astype(jnp.float32), labels, eta=0.5)
    np.testing.assert_allclose(cast, expected, rtol=1e-5, atol=1e-6)


def test_a_wrong_call_is_refused():
    with pytest.raises(ValueError, match=r"labels has shape \(2,\); for logits \(3, 4\)"):
        ours.cyclical_focal_loss(jnp.zeros((3, 4)), jnp.zeros(2, int), eta=0.5)
    with pytest.raises(ValueError, match=r"labels has shape \(3,\), logits \(3, 4\)"):
        ours.binary_cyclical_focal_loss(jnp.zeros((3, 4)), jnp.zeros(3), eta=0.5)
    with pytest.raises(ValueError, match=r"eta is 1\.5"):
        ours.cyclical_focal_loss(jnp.zeros((3, 4)), jnp.zeros(3, int), eta=1.5)
    with pytest.raises(ValueError, match=r"gamma_pos is -1"):
        ours.cyclical_focal_loss(jnp.zeros((3, 4)), jnp.zeros(3, int), eta=0.5, gamma_pos=-1)
    with pytest.raises(ValueError, match=r"cyclical_factor is 0\.5"):
        ours.cyclical_eta(0.5, 0.5)
