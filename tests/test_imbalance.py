"""Class counts give the weights, priors and losses of the papers, and offsets act like shifted logits."""

import itertools
import math
import warnings
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

import oracle
from cyclofocal import (
    BinaryCyclicalFocalLoss,
    CyclicalFocalLoss,
    FocalLoss,
    adjust_logits,
    binary_cyclical_focal_loss,
    class_counts,
    class_weights,
    cyclical_focal_loss,
    linear_cyclical_focal_loss,
    log_prior,
)

COUNTS = st.lists(st.integers(1, 5000), min_size=2, max_size=30)
SETTINGS = {"eta": 0.4, "gamma_pos": 2.0, "gamma_neg": 1.5, "gamma_hc": 3.0, "label_smoothing": 0.1}
CROSS_ENTROPY = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0}
REDUCTIONS = ("mean", "sum", "none")


# counts, weights, priors


@given(st.lists(st.integers(0, 6), min_size=1, max_size=50))
def test_counts_are_those_of_a_loop(labels):
    expected = [sum(label == c for label in labels) for c in range(7)]
    assert class_counts(labels, 7).tolist() == expected
    assert class_counts(np.array(labels), 7).tolist() == expected
    assert class_counts((torch.tensor(part) for part in np.array_split(labels, 3)), 7).tolist() == expected


def test_pixels_of_a_loader_are_counted_in_one_pass():
    loader = [(None, torch.tensor([[[0, 255], [2, 2]]])), (None, torch.tensor([[[1, 2], [255, 0]]]))]
    assert class_counts((target for _, target in loader), 4, ignore_index=255).tolist() == [2, 1, 3, 0]


def test_balanced_weights_are_scikit_learns_up_to_a_factor():
    counts = [50, 20, 5]
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=np.repeat(np.arange(3), counts))
    np.testing.assert_allclose(class_weights(counts), theirs / theirs.mean())


@given(COUNTS, st.floats(0.01, 0.9999))
def test_effective_number_is_a_geometric_sum(counts, beta):
    effective = [sum(beta**k for k in range(count)) for count in counts]
    expected = np.array([1 / number for number in effective])
    np.testing.assert_allclose(class_weights(counts, "effective", beta=beta), expected / expected.mean(), rtol=1e-9)


@given(COUNTS)
def test_limits_of_the_weights(counts):
    np.testing.assert_array_equal(class_weights(counts, "effective", beta=0.0), np.ones(len(counts)))
    nearly = class_weights(counts, "effective", beta=1 - 1e-12)
    np.testing.assert_allclose(nearly, class_weights(counts), rtol=1e-6)
    root = class_weights(counts, "sqrt")
    np.testing.assert_allclose(root**2 / (root**2).mean(), class_weights(counts), rtol=1e-9)


def test_an_absent_class_has_weight_0_and_the_prior_of_1():
    torch.testing.assert_close(class_weights([3, 0, 1], allow_absent=True).float(), torch.tensor([0.5, 0.0, 1.5]))
    torch.testing.assert_close(log_prior([3, 0, 1], allow_absent=True), torch.tensor([3, 1, 1]).double().div(5).log())


def test_prior_of_binary_labels_is_their_log_odds():
    expected = [math.log(10 / 90), math.log(50 / 50)]
    torch.testing.assert_close(log_prior([10, 50], samples=100), torch.tensor(expected, dtype=torch.float64))


def test_adjustment_divides_the_posterior_by_the_prior():
    counts, p = [200, 60, 12], torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
    by_hand = [0.7 / 200, 0.2 / 60, 0.1 / 12]
    expected = torch.tensor([[value / sum(by_hand) for value in by_hand]], dtype=torch.float64)
    torch.testing.assert_close(adjust_logits(p.log(), counts).softmax(1), expected)
    torch.testing.assert_close(adjust_logits(p.log(), counts, tau=0.0), p.log())
    pixels = p.log().view(1, 3, 1, 1).expand(1, 3, 2, 2)
    torch.testing.assert_close(adjust_logits(pixels, counts).softmax(1)[0, :, 1, 0], expected[0])


# offset


@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 5, 3), (2, 5, 3, 2)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_offset_is_the_loss_of_shifted_logits(backend, shape, reduction):
    offset = torch.randn(5, dtype=torch.float64)
    by_class = offset.view((5,) + (1,) * max(len(shape) - 2, 0))
    indices = torch.randint(5, shape[:1] + shape[2:] if len(shape) > 1 else ())
    soft, weight = torch.rand(shape, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    for target, weights in itertools.product((indices, soft), (None, weight)):
        logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        call = {**SETTINGS, "reduction": reduction}
        ours = cyclical_focal_loss(logits, target, weights, logit_offset=offset, **call)
        other = cyclical_focal_loss(logits + by_class, target, weights, **call)
        _assert_equal(ours, other, logits)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sigmoid_offset_is_per_last_dimension(backend, reduction):
    logits = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    target, offset = torch.rand(4, 3, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    call = {**SETTINGS, "reduction": reduction, "alpha": 0.3}
    ours = binary_cyclical_focal_loss(logits, target, logit_offset=offset, **call)
    _assert_equal(ours, binary_cyclical_focal_loss(logits + offset, target, **call), logits)


def test_a_single_offset_is_for_logits_of_one_label():
    logits, target = torch.randn(5), torch.rand(5)
    for z in (logits, logits.unsqueeze(1)):
        t = target.view(z.shape)
        ours = binary_cyclical_focal_loss(z, t, logit_offset=torch.tensor([-2.0]), **SETTINGS)
        torch.testing.assert_close(ours, binary_cyclical_focal_loss(z - 2.0, t, **SETTINGS))
    criterion = BinaryCyclicalFocalLoss.from_counts([10], 100, tau=1.0)
    assert criterion(logits, target).isfinite()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_offset_of_the_linear_form(backend, reduction, with_bias):
    hidden, weight = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (6, 5))
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True) if with_bias else None
    target, offset = torch.randint(5, (6,)), torch.randn(5, dtype=torch.float64)
    call = {**SETTINGS, "reduction": reduction, "logit_offset": offset}
    ours = linear_cyclical_focal_loss(hidden, weight, target, bias, chunk_rows=2, **call)
    other = cyclical_focal_loss(F.linear(hidden, weight, bias), target, **call)
    for tensor in (hidden, weight, *([bias] if bias is not None else [])):
        _assert_equal(ours, other, tensor)


def test_offset_passes_gradcheck():
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(3, dtype=torch.float64, requires_grad=True)
    samples = torch.rand(4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 2, 1, 1])

    def loss(z, shift, factor):
        return cyclical_focal_loss(z, target, logit_offset=shift, sample_weight=factor, **SETTINGS)

    assert torch.autograd.gradcheck(loss, (logits, offset, samples))
    assert torch.autograd.gradgradcheck(loss, (logits, offset, samples))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_offset_is_added_in_float32_to_half_logits(dtype):
    logits, target, offset = torch.randn(64, 5).to(dtype), torch.randint(5, (64,)), torch.randn(5) - 8
    ours = cyclical_focal_loss(logits, target, logit_offset=offset, **SETTINGS)
    torch.testing.assert_close(ours, cyclical_focal_loss(logits.float() + offset, target, **SETTINGS))
    x = logits.clone().requires_grad_()
    cyclical_focal_loss(x, target, logit_offset=offset, **SETTINGS).backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


def test_compiled_module_with_offset_and_late_weights():
    criterion = CyclicalFocalLoss.from_counts([90, 10], tau=1.0, class_weight="balanced", weight_start=0.5)
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(criterion, backend=backend, fullgraph=True)
    logits, target = torch.randn(6, 2), torch.tensor([0, 1, 0, 0, 1, 0])
    for progress in (0.0, 0.3, 0.6, 1.0):
        criterion.set_progress(progress)
        torch.testing.assert_close(compiled(logits, target), criterion(logits, target))
    assert len(graphs) == 1


def test_balanced_softmax_as_in_its_paper():
    counts = [200, 60, 12]
    logits, target = torch.randn(5, 3, dtype=torch.float64), torch.randint(3, (5,))
    expected = [
        -math.log(counts[t] * math.exp(row[t]) / sum(n * math.exp(z) for n, z in zip(counts, row, strict=True)))
        for row, t in zip(logits.tolist(), target.tolist(), strict=True)
    ]
    ours = CyclicalFocalLoss.from_counts(counts, tau=1.0, **CROSS_ENTROPY)(logits, target)
    assert ours.item() == pytest.approx(np.mean(expected), rel=1e-6)


def test_tau_1_recovers_the_balanced_decision():
    """Two unit normals at -1 and 1: for equally likely classes the boundary is 0, with the prior 9:1 it is 1.1."""
    labels = torch.repeat_interleave(torch.arange(2), torch.tensor([9000, 1000]))
    x = (torch.randn(10_000, dtype=torch.float64) + 2 * labels - 1).unsqueeze(1)
    boundaries = {}
    for tau in (0.0, 1.0):
        model = nn.Linear(1, 2).double()
        criterion = CyclicalFocalLoss(logit_offset=tau * log_prior([9000, 1000]), **CROSS_ENTROPY)
        criterion.set_progress(0.0)
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def closure(model=model, criterion=criterion, optimizer=optimizer):
            optimizer.zero_grad()
            loss = criterion(model(x), labels)
            loss.backward()
            return loss

        optimizer.step(closure)
        slope, shift = (p[1] - p[0] for p in (model.weight[:, 0], model.bias))
        boundaries[tau] = -(shift / slope).item()
    assert boundaries[1.0] == pytest.approx(0.0, abs=0.08)
    assert boundaries[0.0] == pytest.approx(math.log(9) / 2, abs=0.08)


# sample weights


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sample_weights_against_the_oracle(backend, reduction):
    weight, samples = torch.rand(4, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    target = torch.tensor([0, 3, -100, 1, 2, 0])
    logits = torch.randn(6, 4, dtype=torch.float64)
    gammas = (SETTINGS[name] for name in ("eta", "gamma_pos", "gamma_neg", "gamma_hc"))
    rows = oracle.softmax_loss(logits.tolist(), target.tolist(), weight.tolist(), *gammas, -100, 0.1, "none")
    rows = [row * s for row, s in zip(rows, samples.tolist(), strict=True)]
    counted = sum(weight[t] * s for t, s in zip(target, samples, strict=True) if t >= 0)
    expected = {"none": rows, "sum": sum(rows), "mean": sum(rows) / counted}[reduction]
    call = {**SETTINGS, "reduction": reduction, "sample_weight": samples}
    ours = cyclical_focal_loss(logits, target, weight, **call)
    torch.testing.assert_close(ours, torch.as_tensor(expected, dtype=torch.float64))
    linear = linear_cyclical_focal_loss(
        logits, torch.eye(4, dtype=torch.float64), target, class_weight=weight, chunk_rows=4, **call
    )
    torch.testing.assert_close(linear, ours)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("soft", [True, False])
def test_gradients_of_the_linear_form_with_sample_weights(reduction, soft):
    hidden, weight = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (6, 5))
    target = torch.rand(6, 5, dtype=torch.float64) if soft else torch.tensor([0, 4, -100, 1, 2, 0])
    call = {**SETTINGS, "reduction": reduction, "sample_weight": torch.rand(6, dtype=torch.float64)}
    ours = linear_cyclical_focal_loss(hidden, weight, target, chunk_rows=4, **call)
    other = cyclical_focal_loss(F.linear(hidden, weight), target, **call)
    for tensor in (hidden, weight):
        _assert_equal(ours, other, tensor)


def test_equal_sample_weights_change_nothing_but_scale():
    logits, target = torch.randn(4, 3, 2, dtype=torch.float64), torch.randint(3, (4, 2))
    labels = torch.randint(2, (4, 3, 2))
    for samples in (torch.full((4,), 2.0), torch.full((4, 2), 2.0)):
        ours = cyclical_focal_loss(logits, target, sample_weight=samples, **SETTINGS)
        torch.testing.assert_close(ours, cyclical_focal_loss(logits, target, **SETTINGS))
    ours = binary_cyclical_focal_loss(logits, labels, sample_weight=torch.full((4,), 2.0), **SETTINGS)
    torch.testing.assert_close(ours, binary_cyclical_focal_loss(logits, labels, **SETTINGS))


def test_sample_weights_of_a_sigmoid_divide_the_mean():
    logits, target = torch.randn(3, 2, dtype=torch.float64), torch.tensor([[1, 0], [0, 0], [1, 1]])
    samples = torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64)
    elements = binary_cyclical_focal_loss(logits, target, reduction="none", **SETTINGS)
    ours = binary_cyclical_focal_loss(logits, target, sample_weight=samples, **SETTINGS)
    torch.testing.assert_close(ours, (elements.mean(1) * samples).sum() / 4)


# modules


def test_eval_mode_has_no_offset():
    criterion = CyclicalFocalLoss.from_counts([90, 10], tau=1.0)
    logits, target = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    criterion.eval()
    torch.testing.assert_close(criterion(logits, target), F.cross_entropy(logits, target))
    both = BinaryCyclicalFocalLoss.from_counts([1, 5], 10, tau=1.0).eval()
    labels = torch.eye(2)[target]
    torch.testing.assert_close(both(logits, labels), F.binary_cross_entropy_with_logits(logits, labels))


def test_class_weights_wait_for_their_start():
    weight = torch.tensor([0.5, 1.5])
    criterion = CyclicalFocalLoss(weight, weight_start=0.7, total_steps=11)
    plain, weighted = CyclicalFocalLoss(), CyclicalFocalLoss(weight)
    target = torch.tensor([0, 1, 1, 0])
    for step in range(11):
        logits = torch.randn(4, 2, requires_grad=True)
        expected = weighted if step >= 7 else plain
        expected.set_progress(step / 10)
        loss = criterion(logits, target)
        torch.testing.assert_close(loss, expected(logits, target))
        loss.backward()


def test_a_recomputed_forward_has_the_weights_of_the_first():
    criterion = CyclicalFocalLoss(torch.tensor([0.1, 5.0]), weight_start=1.0, total_steps=2, reduction="sum")
    logits, target = torch.randn(4, 2, requires_grad=True), torch.tensor([0, 1, 1, 0])

    def run(z):
        return criterion(z * 1.0, target)

    loss = torch.utils.checkpoint.checkpoint(run, logits, use_reentrant=False)
    loss.backward()  # the clock reaches the start before the forward is repeated
    plain = CyclicalFocalLoss(reduction="sum")
    (expected,) = torch.autograd.grad(plain(x := logits.detach().requires_grad_(), target), x)
    assert criterion.progress == 1
    torch.testing.assert_close(logits.grad, expected)


def test_weights_of_both_sides_of_a_label():
    criterion = BinaryCyclicalFocalLoss.from_counts([10, 50], 100, class_weight="balanced", **CROSS_ENTROPY)
    for label, (n, share) in enumerate([(100, 0.1), (100, 0.5)]):
        target = (torch.arange(n) < share * n).float()
        logits = torch.zeros(n, 2)
        labels = torch.zeros(n, 2)
        labels[:, label] = target
        criterion.reduction = "none"
        loss = criterion(logits, labels)[:, label] / math.log(2)
        positive, negative = loss[target == 1], loss[target == 0]
        assert positive.sum().item() == pytest.approx(negative.sum().item(), rel=1e-5)
        assert (positive[0] + negative[0]).item() == pytest.approx(2, rel=1e-5)


def test_offset_and_weights_travel_with_the_state():
    criterion = CyclicalFocalLoss.from_counts([7, 1], tau=0.5, class_weight="sqrt", weight_start=0.5)
    other = CyclicalFocalLoss.from_counts([1, 1], tau=0.5, class_weight="sqrt", weight_start=0.5)
    other.load_state_dict(criterion.state_dict())
    assert torch.equal(other.logit_offset, criterion.logit_offset)
    assert other.half().logit_offset.dtype == torch.float32
    assert CyclicalFocalLoss.from_counts([7, 1], tau=1.0).to("meta").logit_offset.is_meta


def test_counts_of_every_kind_give_the_same_loss():
    target, logits = torch.tensor([0, 1, 2]), torch.randn(3, 3)
    losses = [
        CyclicalFocalLoss.from_counts(counts, tau=1.0, class_weight="effective")(logits, target)
        for counts in ([9, 3, 1], np.array([9, 3, 1]), torch.tensor([9, 3, 1]), torch.tensor([9.0, 3.0, 1.0]))
    ]
    assert len({loss.item() for loss in losses}) == 1


# documentation


def test_the_table_of_gradients_follows_from_the_loss():
    text = (Path(__file__).parent.parent / "docs/imbalance.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if "gamma 2 |" in line or "gamma 3 |" in line]
    assert len(rows) == 3
    for name, *cells in rows:
        gamma = float(name[-1])
        settings = {"eta": 0.0, "gamma_pos": gamma} if name.startswith("focal") else {"eta": 1.0, "gamma_hc": gamma}
        ratios = [_gradient(p, **settings) / _gradient(p, eta=1.0) for p in (0.05, 0.1, 0.2, 0.5, 0.7, 0.9, 0.99)]
        ratios.append(_gradient(0.05, **settings) / _gradient(0.95, **settings))
        for cell, ratio in zip(cells, ratios, strict=True):
            digits = len(cell.partition(".")[2])
            assert float(cell.replace(",", "")) == pytest.approx(ratio, abs=0.5001 * 10**-digits)


def _gradient(p, **settings):
    """Gradient with respect to the target's logit of two classes, at its probability p."""
    logits = torch.tensor([[math.log(p), math.log1p(-p)]], dtype=torch.float64, requires_grad=True)
    loss = cyclical_focal_loss(logits, torch.tensor([0]), **{**CROSS_ENTROPY, **settings})
    return torch.autograd.grad(loss, logits)[0][0, 0].item()


# bad input

BAD_COUNTS = {
    "3, -1": ([3, -1], "counts holds -1 for class 1"),
    "fraction": ([3.5, 1], "counts holds 3.5 for class 0"),
    "nan": ([3, math.nan], "counts holds nan for class 1"),
    "zero": ([0, 0], "0 for every class"),
    "absent": ([3, 0], "counts is 0 for class 1; every class must have a sample, unless allow_absent=True"),
    "labels": ([1, 0, 2, 0], r"counts is 0 for class 1; .*; if these are labels, class_counts\(labels\) counts them"),
    "empty": ([], "counts is empty"),
}


@pytest.mark.parametrize("name", BAD_COUNTS)
def test_bad_counts_are_refused(name):
    counts, message = BAD_COUNTS[name]
    for call in (
        class_weights,
        log_prior,
        lambda c: CyclicalFocalLoss.from_counts(c, tau=1.0),
        lambda c: CyclicalFocalLoss.from_counts(c, class_weight="sqrt"),
        lambda c: adjust_logits(torch.zeros(1, 2), c),
        CyclicalFocalLoss.from_counts,
    ):
        with pytest.raises(ValueError, match=message):
            call(counts)


def test_counts_that_change_nothing_warn():
    for kind, samples in ((CyclicalFocalLoss, ()), (FocalLoss, ()), (BinaryCyclicalFocalLoss, (100,))):
        with pytest.warns(UserWarning, match=r"the counts change nothing .*; leave tau out, or give class_weight"):
            kind.from_counts([90, 10], *samples, total_steps=10, tau=0.0)


@pytest.mark.parametrize(
    ("kind", "samples"), [(CyclicalFocalLoss, ()), (FocalLoss, ()), (BinaryCyclicalFocalLoss, (100,))]
)
def test_counts_alone_give_the_prior_and_weights_none(kind, samples):
    alone, weighted = (kind.from_counts([90, 10], *samples, **given) for given in ({}, {"class_weight": "sqrt"}))
    torch.testing.assert_close(alone.logit_offset, kind.from_counts([90, 10], *samples, tau=1.0).logit_offset)
    assert alone.weight is None
    assert weighted.logit_offset is None


PLAIN = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0}
SMOOTHED = {  # class, settings, label smoothing, and samples of the second of two classes, the first of which has 1,000
    "cross-entropy": (CyclicalFocalLoss, PLAIN, 0.1, 100),
    "cross-entropy as focal loss": (FocalLoss, {"gamma_pos": 0.0, "gamma_neg": 0.0}, 0.1, 100),
    "little smoothing": (CyclicalFocalLoss, PLAIN, 0.01, 100),
    "published cycle": (CyclicalFocalLoss, {}, 0.1, 100),
    "published cycle, a steep tail": (CyclicalFocalLoss, {}, 0.1, 2),
    "focal": (FocalLoss, {}, 0.1, 100),
}


@pytest.mark.parametrize("name", SMOOTHED)
def test_smoothing_that_lets_a_rare_class_win_warns(name):
    kind, settings, smoothing, rare = SMOOTHED[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss = kind.from_counts([1000, rare], label_smoothing=smoothing, **settings)
    assert bool(caught) == (_learnt_margin(loss) < math.log(2)), [str(one.message) for one in caught]


def test_smoothing_beside_an_offset_of_any_origin_warns():
    for kind, prior in (
        (CyclicalFocalLoss, log_prior([1000, 1])),
        (BinaryCyclicalFocalLoss, log_prior([1], samples=99)),
    ):
        with pytest.warns(
            UserWarning, match=r"label_smoothing is 0\.1, and by tau, or logit_offset, .* smoothing_odds=10"
        ):
            kind(logit_offset=prior, label_smoothing=0.1, **PLAIN)


@pytest.mark.parametrize(("settings", "tolerance"), [(PLAIN, 0.001), ({}, 0.05)])
def test_smoothing_odds_are_those_at_the_minimum(settings, tolerance):
    loss = CyclicalFocalLoss.from_counts([1000, 10], smoothing_odds=10.0, **settings)
    assert _learnt_margin(loss) == pytest.approx(math.log(10), abs=tolerance)
    assert CyclicalFocalLoss.from_counts([50, 50], smoothing_odds=10.0).label_smoothing == 0.1
    assert FocalLoss.from_counts([1000, 10], smoothing_odds=10.0).label_smoothing == 0.1


def test_smoothing_odds_of_labels_are_those_of_each_decision():
    loss = BinaryCyclicalFocalLoss.from_counts([10, 500], 1010, smoothing_odds=10.0, **PLAIN)
    logits = torch.linspace(-8, 8, 16_001, dtype=torch.float64)[:, None].expand(-1, 2)
    loss.reduction = "none"
    margins = logits.gather(0, loss(logits, torch.zeros_like(logits)).argmin(0)[None])
    assert margins[0, 0] == pytest.approx(-math.log(10), abs=0.001)
    assert margins[0, 1] < -math.log(10)


def _learnt_margin(loss):
    """Logit of the first of two classes less the other's at the minimum of the loss of a sample of the first."""
    margins = torch.linspace(-8, 16, 24_001, dtype=torch.float64)
    loss.reduction = "none"
    of_first = loss(torch.stack([margins, torch.zeros_like(margins)], 1), torch.zeros(len(margins), dtype=torch.long))
    return float(margins[of_first.argmin()])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("settings", [{}, {"tau": 1.0}, {"class_weight": "sqrt"}])
def test_counts_that_change_the_loss_do_not_warn(settings):
    CyclicalFocalLoss.from_counts([90, 10], **settings)
    BinaryCyclicalFocalLoss.from_counts([90, 10], 100, **settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CyclicalFocalLoss.from_counts([1, 2], tau=-1.0), "tau is -1.0; it must be at least 0"),
        (lambda: CyclicalFocalLoss.from_counts([1, 2], tau=math.inf), "tau is inf; it must be finite"),
        (lambda: CyclicalFocalLoss.from_counts([1, 2], tau=math.nan), "tau is nan"),
        (lambda: CyclicalFocalLoss.from_counts([1, 2], class_weight="balance"), "class_weight is 'balance'; it must"),
        (
            lambda: CyclicalFocalLoss.from_counts([1, 2], class_weight="sqrt", weight=torch.ones(2)),
            "weight is given, and class_weight",
        ),
        (
            lambda: CyclicalFocalLoss.from_counts([1, 2], tau=1.0, logit_offset=torch.ones(2)),
            "logit_offset is given, and tau",
        ),
        (
            lambda: CyclicalFocalLoss.from_counts([1, 2], weight_start=0.8),
            "weight_start is 0.8, but there is no weight",
        ),
        (
            lambda: CyclicalFocalLoss.from_counts([1, 2], smoothing_odds=1.0),
            "smoothing_odds is 1.0; it must be greater",
        ),
        (
            lambda: CyclicalFocalLoss.from_counts([1, 2, 3], class_weight="sqrt", smoothing_odds=9.0),
            "smoothing_odds is 9 and tau 0; it depends on the prior: give tau=1",
        ),
        (
            lambda: BinaryCyclicalFocalLoss.from_counts([1], 9, smoothing_odds=9.0, label_smoothing=0.0),
            "label_smoothing is given, and smoothing_odds sets it",
        ),
        (lambda: CyclicalFocalLoss(torch.ones(2), weight_start=1.2), r"weight_start is 1.2; it must lie in \[0, 1\]"),
        (lambda: CyclicalFocalLoss(logit_offset=torch.ones(2, 1)), r"logit_offset is .* of shape \(2, 1\)"),
        (lambda: CyclicalFocalLoss(logit_offset=torch.tensor([0.0, -math.inf])), "not finite"),
        (lambda: BinaryCyclicalFocalLoss.from_counts([1, 12], 10, tau=1.0), "label 1 has 12 positives of 10 samples"),
        (lambda: BinaryCyclicalFocalLoss.from_counts([1, 10], 10, tau=1.0), "negative or positive.* is 0 for class 1"),
        (lambda: BinaryCyclicalFocalLoss.from_counts([1, 2], [9, 9, 9]), "samples has 3 numbers for 2 labels"),
        (lambda: class_weights([2, 1], "effective", beta=1.0), r"beta is 1.0; it must lie in \[0, 1\)"),
        (lambda: adjust_logits(torch.zeros(1, 2), [3, 1, 1]), r"shape \(1, 2\) and counts 3 classes"),
        (lambda: class_counts([0, 5], 3), r"labels are from 0 to 5; they must be in \[0, 2\]"),
        (lambda: class_counts([]), "labels are empty; give classes"),
    ],
)
def test_bad_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("settings", [{"tau": 1.0}, {"class_weight": "sqrt"}])
def test_counts_of_other_classes_are_named_when_called(settings):
    criterion = CyclicalFocalLoss.from_counts([9, 1], **settings)
    with pytest.raises(
        ValueError, match=r"has shape \(2,\);.*; if from_counts made it, give .* one count for each class"
    ):
        criterion(torch.zeros(2, 3), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"logit_offset": torch.zeros(4)}, r"logit_offset has shape \(4,\); for logits of shape \(2, 3\)"),
        ({"logit_offset": torch.zeros(3, device="meta")}, "logit_offset is on meta, (logits|not) on cpu"),
        ({"sample_weight": torch.ones(3)}, r"sample_weight has shape \(3,\); it must be \(2,\)"),
        ({"sample_weight": torch.ones(2, device="meta")}, "sample_weight is on meta, logits on cpu"),
    ],
)
def test_offsets_and_sample_weights_that_do_not_fit(call, message):
    logits, target = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=message):
        cyclical_focal_loss(logits, target, **SETTINGS, **call)
    with pytest.raises(ValueError, match=message):
        binary_cyclical_focal_loss(logits, torch.zeros(2, 3), **SETTINGS, **call)
    with pytest.raises(ValueError, match=message.split(";")[0]):
        linear_cyclical_focal_loss(torch.zeros(2, 4), torch.zeros(3, 4), target, **SETTINGS, **call)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adjust_logits(torch.tensor([[5, 4]]), [3, 1]), "logits has dtype torch.int64"),
        (lambda: adjust_logits(np.zeros((1, 2)), [3, 1]), "logits is a ndarray"),
        (lambda: adjust_logits(torch.zeros(1, 2), [3, 1], "1"), "tau is '1'; it must be a number"),
        (lambda: class_weights({0: 3, 1: 1}), "counts is a dict; give a sequence"),
        (lambda: class_weights(pandas.Series(["a", "a", "b"]).value_counts()), "counts is a Series"),
        (lambda: class_counts(["a", "b"]), "labels hold the text 'a'"),
        (lambda: cyclical_focal_loss(torch.zeros(1, 2), torch.tensor([0]), eta=0.0, logit_offset=[0.0, 0.0]), "a list"),
    ],
)
def test_values_of_another_type_are_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_negative_sample_weights_are_refused():
    for value in (-1.0, math.nan):
        with pytest.raises(ValueError, match=r"sample_weight holds .*; it must be at least 0"):
            cyclical_focal_loss(torch.zeros(2, 2), torch.tensor([0, 1]), eta=0.0, sample_weight=torch.full((2,), value))


def test_labels_that_are_not_integers_are_refused():
    with pytest.raises(TypeError, match=r"labels have dtype torch\.float32"):
        class_counts(torch.tensor([0.0, 1.0]))


def _assert_equal(ours, other, tensor):
    """Equal values, and gradients of ``tensor``, to 1e-12."""
    torch.testing.assert_close(ours, other, rtol=1e-12, atol=1e-12)
    (a,), (b,) = (torch.autograd.grad(loss.sum(), tensor, retain_graph=True) for loss in (ours, other))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
