"""Promise: every number and every derived formula of docs/loss.md follows from the library's equations."""

import math
import re
from pathlib import Path

import pytest
import torch

from cyclofocal.equation import target_term
from cyclofocal.functional import binary_cyclical_focal_loss, cyclical_focal_loss
from cyclofocal.schedules import cyclical_eta

PAGE = (Path(__file__).parent.parent / "docs/loss.md").read_text(encoding="utf-8")
PROSE = " ".join(PAGE.split())
MIDDLE = 0.5

pytestmark = pytest.mark.filterwarnings("ignore:a gamma_hc above")


def numbers_of(pattern: str) -> list[str]:
    """Numbers of a sentence of the page, as written; ``#`` in ``pattern`` stands for one."""
    found = re.search(re.escape(pattern).replace(r"\#", r"(\d+\.?\d*)"), PROSE)
    assert found, pattern
    return list(found.groups())


def table_below(text: str) -> list[list[str]]:
    """Rows of the first table after a text, without its head."""
    lines = PAGE.partition(text)[2].partition("\n|")[2].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def phi(p, eta, gamma_pos, gamma_hc, order):
    """Derivative of the true class's term by p, by autograd through the library's equation."""
    p = torch.as_tensor(p, dtype=torch.float64).requires_grad_()
    value = -target_term(p.log(), eta, gamma_pos, gamma_hc)
    for _ in range(order):
        (value,) = torch.autograd.grad(value.sum(), p, create_graph=True)
    return value.detach()


def root(function, low, high):
    """Place of the change of sign between ``low`` and ``high``."""
    sign = function(low) > 0
    assert (function(high) > 0) != sign
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if (function(middle) > 0) == sign else (low, middle)
    return low


def factor(p, eta, gamma_pos, gamma_hc):
    """Gradient of the library's loss relative to cross-entropy's."""
    logits = torch.tensor([[math.log(p / (1 - p)), 0.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0])
    settings = {"eta": eta, "gamma_pos": gamma_pos, "gamma_hc": gamma_hc}
    (grad,) = torch.autograd.grad(cyclical_focal_loss(logits, target, **settings), logits)
    return (grad / torch.tensor([[p - 1, 1 - p]]))[0]


def minima(q, eta, gamma_hc):
    """Places of the minima of the pair's risk on a grid."""
    p = torch.arange(1, 10_000, dtype=torch.float64) / 10_000
    risk = q * phi(p, eta, 0, gamma_hc, 0) + (1 - q) * phi(1 - p, eta, 0, gamma_hc, 0)
    return p[1:-1][(risk[1:-1] < risk[:-2]) & (risk[1:-1] <= risk[2:])].tolist()


@pytest.mark.parametrize("row", table_below("as one with 0.95:"), ids=lambda row: row[0])
def test_table_of_gradients(row):
    name, *cells, ratio = row
    exponent = float(name[-1]) if name[-1].isdigit() else 0.0
    settings = (1.0, 0.0, exponent) if name.startswith("high") else (0.0, exponent, 0.0)
    at = [0.05, 0.1, 0.2, 0.5, 0.7, 0.9, 0.99]
    for p, cell in zip(at, cells, strict=True):
        by_class = factor(p, *settings)
        torch.testing.assert_close(by_class[0], by_class[1])  # one factor for the whole gradient
        assert f"{by_class[0]:.3f}" == cell
    pull = [factor(p, *settings)[0] * (1 - p) for p in (0.05, 0.95)]
    assert f"{pull[0] / pull[1]:.1f}" == ratio


def test_monotone_bound():
    """The slope of the high-confidence term is never positive up to the bound, and is above it."""
    place, reciprocal, bound = numbers_of("$p = #$, and is $1 / # = #$")
    p = torch.linspace(0.2, 0.4, 200_001, dtype=torch.float64)
    lowest, index = ((1 + p) / (-p * p.log())).min(0)
    assert (place, bound) == (f"{p[index]:.4f}", f"{lowest:.3f}")
    assert reciprocal == place
    assert (phi(p, 1.0, 0.0, float(lowest) - 1e-6, 1) <= 0).all()
    assert phi(p[index], 1.0, 0.0, float(lowest) + 1e-6, 1) > 0
    warned = numbers_of("The library warns above #.")
    assert float(warned[0]) == int(100 * lowest) / 100


def test_wrong_way_band():
    slope = lambda p: phi(p, 1.0, 0.0, 4.0, 1)  # noqa: E731
    ends = root(slope, 0.01, 0.28), root(slope, 0.28, 0.9)
    assert numbers_of("for $p$ from # to #: there") == [f"{end:.3f}" for end in ends]


@pytest.mark.parametrize(
    ("classes", "pattern", "between"),
    [
        (2, r"negative for $\gamma_h$ from # to #.", 4.0),
        (3, r"unstable for three classes with $\gamma_h$ from # to #,", 4.0),
    ],
)
def test_range_of_gamma_hc_without_stable_centre(classes, pattern, between):
    curvature = lambda gamma_hc: phi(1 / classes, 1.0, 0.0, gamma_hc, 2)  # noqa: E731
    ends = root(curvature, 0.0, between), root(curvature, between, 12.0)
    assert numbers_of(pattern) == [f"{end:.3f}" for end in ends]


def test_four_or_more_classes_have_a_stable_centre():
    assert "for four or more with none" in PROSE
    for classes in (4, 5, 10, 100, 1000):
        assert all(phi(1 / classes, 1.0, 0.0, gamma_hc / 10, 2) > 0 for gamma_hc in range(150))


@pytest.mark.parametrize("row", table_below("whatever the factor:"), ids=" ".join)
def test_thresholds_of_eta(row):
    gamma_pos, gamma_hc = float(row[0]), float(row[1])
    threshold = root(lambda eta: phi(MIDDLE, eta, gamma_pos, gamma_hc, 2), 0.0, 1.0)
    assert row[2:] == [f"{threshold:.3f}", f"{100 * (1 - threshold):.0f} %"]


def test_curvature_in_closed_form():
    for eta, f, h in [(0.0, 2.0, 3.0), (1.0, 0.0, 2.0), (0.3, 4.5, 1.5), (0.7, 1.0, 5.0)]:
        focal = 4 * (1 - eta) * 2**-f * (f * (f - 1) * math.log(2) + 2 * f + 1)
        easy = eta * 1.5 ** (h - 2) * (h * (h - 1) * math.log(2) - 6 * h + 9)
        assert phi(MIDDLE, eta, f, h, 2).item() == pytest.approx(focal + easy)


@pytest.mark.parametrize("cyclical_factor", [1.0, 1.5, 2.0, 4.0, 10.0])
def test_share_of_training_above_a_value(cyclical_factor):
    progress = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    eta = cyclical_eta(progress, cyclical_factor)
    for value in (0.2, 0.468, 0.9):
        assert (eta > value).double().mean().item() == pytest.approx(1 - value, abs=1e-4)


def test_minima_of_uneven_pairs():
    q_two, low, high, q_one = numbers_of("with $q = #$ ($p = #$ and $#$) and one with $q = #$")
    assert [f"{p:.3f}" for p in minima(float(q_two), 1.0, 3.0)] == [low, high]
    assert len(minima(float(q_one), 1.0, 3.0)) == 1
    assert [len(minima(0.5, 1.0, gamma_hc)) for gamma_hc in (1.6, 1.63)] == [1, 2]


def test_ratio_of_log_odds():
    """The minimum obeys the page's equation; the slope at the even pair and the examples follow from it."""
    log_odds = lambda p: math.log(p / (1 - p))  # noqa: E731
    gammas = [float(cell) for cell in re.findall(r"[\d.]+", PAGE.partition("near the even pair:")[2].splitlines()[2])]
    written = re.findall(r"[\d.]+", PAGE.partition("near the even pair:")[2].splitlines()[4])
    for gamma_pos, cell in zip(gammas, written, strict=True):
        p = 0.5 + 1e-4
        change = torch.log(factor(1 - p, 0.0, gamma_pos, 0.0)[0] / factor(p, 0.0, gamma_pos, 0.0)[0]).item()
        assert f"{log_odds(p) / (log_odds(p) + change):.2f}" == cell
    first, q_first, second, q_second = numbers_of("with exponent 2, $a$ is # at $q = #$ and # at $q = #$")
    for ratio, q in ((first, float(q_first)), (second, float(q_second))):
        (p,) = minima(q, 1.0, 2.0)
        assert f"{log_odds(p) / log_odds(q):.1f}" == ratio
        change = torch.log(factor(1 - p, 1.0, 0.0, 2.0)[0] / factor(p, 1.0, 0.0, 2.0)[0]).item()
        assert log_odds(q) == pytest.approx(log_odds(p) + change, abs=0.01)


def test_sigmoid_gradient_in_closed_form():
    def relative(s, gamma, eta, h):
        w = (1 - eta) * (1 - s) ** gamma + eta * (1 + s) ** h
        slope = eta * h * (1 + s) ** (h - 1) - (1 - eta) * gamma * (1 - s) ** (gamma - 1)
        return w + s * slope * s.log()

    logits = torch.linspace(-4, 4, 41, dtype=torch.float64, requires_grad=True)
    target = torch.rand(41, dtype=torch.float64)
    eta, f, n, h, alpha, beta, margin, smoothing = 0.3, 2.0, 4.0, 3.0, 0.25, 1.5, 0.05, 0.1
    loss = binary_cyclical_focal_loss(
        logits,
        target,
        eta=eta,
        gamma_pos=f,
        gamma_neg=n,
        gamma_hc=h,
        alpha=alpha,
        pos_weight=torch.tensor(beta),
        probability_margin=margin,
        label_smoothing=smoothing,
        reduction="sum",
    )
    (grad,) = torch.autograd.grad(loss, logits)
    p, y = logits.detach().sigmoid(), (1 - smoothing) * target + smoothing / 2
    r = 1 - (p - margin).clamp(min=0)
    negative = torch.where(p < margin, 0.0, (1 - alpha) * (1 - y) * p * (1 - p) / r * relative(r, n, eta, h))
    torch.testing.assert_close(grad, -alpha * beta * y * (1 - p) * relative(p, f, eta, h) + negative)
