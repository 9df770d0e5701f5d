"""Promise: every schedule is a pure function of progress that never leaves its range."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cyclofocal.schedules import cosine, cyclical_eta, epoch_progress, interpolate, repeated

unit = st.floats(0, 1)
factors = st.floats(1, 50)


@given(unit, factors)
def test_eta_stays_in_range_and_tensors_agree_with_floats(progress, factor):
    eta = cyclical_eta(progress, factor)
    assert 0 <= eta <= 1
    assert 0 <= cosine(eta) <= 1
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        as_tensor = cyclical_eta(torch.tensor(progress, dtype=dtype), factor)
        assert 0 <= as_tensor <= 1
        assert as_tensor.item() == pytest.approx(eta, abs=tolerance)


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0, 3.7, 4.0, 49.0])
def test_eta_is_1_at_the_start_0_at_the_turn_and_1_at_the_end(factor):
    assert cyclical_eta(0.0, factor) == 1
    assert cyclical_eta(1 / factor, factor) == pytest.approx(0, abs=1e-12)
    assert cyclical_eta(1.0, factor) == (0 if factor == 1 else 1)


@given(st.integers(1, 500), st.integers(0, 499))
def test_epochs_count_from_zero(epochs, epoch):
    if epoch < epochs:
        assert 0 <= cyclical_eta(epoch_progress(epoch, epochs)) <= 1
    else:
        with pytest.raises(ValueError, match=r"counted from 0"):
            epoch_progress(epoch, epochs)


def test_epoch_progress_runs_from_0_to_1_or_is_one_epoch():
    assert [epoch_progress(0, 3), epoch_progress(2, 3), epoch_progress(0, 1)] == [0.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="at least 1"):
        epoch_progress(0, 0)


@given(unit, st.integers(1, 7))
def test_repeated_cycles_are_each_a_whole_cycle(progress, cycles):
    within = repeated(progress, cycles)
    assert 0 <= within <= 1
    assert repeated(torch.tensor(progress, dtype=torch.float64), cycles).item() == pytest.approx(within)
    assert repeated(1.0, cycles) == 1.0
    for cycle in range(cycles):
        assert repeated((cycle + 0.5) / cycles, cycles) == pytest.approx(0.5)


@given(unit, st.floats(-5, 5), st.floats(-5, 5))
def test_interpolate_is_low_at_eta_1_and_high_at_eta_0(eta, low, high):
    value = interpolate(eta, low, high)
    assert min(low, high) - 1e-9 <= value <= max(low, high) + 1e-9
    assert interpolate(1.0, low, high) == pytest.approx(low)
    assert interpolate(0.0, low, high) == high
    assert torch.is_tensor(interpolate(torch.tensor(eta), low, high))


@pytest.mark.parametrize("bad", [-0.01, 1.01, math.nan, torch.tensor(1.5), torch.tensor([0.5, -1.0])])
@pytest.mark.parametrize("schedule", [cyclical_eta, cosine, lambda p: repeated(p, 2), lambda p: interpolate(p, 0, 1)])
def test_out_of_range_raises(schedule, bad):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        schedule(bad)


@pytest.mark.parametrize("factor", [0.99, 0.0, math.inf, math.nan])
def test_a_factor_below_one_raises(factor):
    with pytest.raises(ValueError, match="cyclical_factor is"):
        cyclical_eta(0.5, factor)
