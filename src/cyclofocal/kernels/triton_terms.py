"""Parts of the Triton kernels: elementary functions, the weight of a side, a program's range of memory.

Needs triton, so :mod:`cyclofocal.kernels.triton_backend` imports it, and the kernels, at first use.

Exponents that are whole numbers up to 8 are compiled in (WHOLE, POS, NEG, HC; -1 for any other), so that they cost
multiplications only. All other settings are float64 numbers whose bits are an int64 argument of a kernel: Triton would
round a Python float to float32, too coarse for float64 logits.
"""
# mypy: ignore-errors
# ruff: noqa: N803, N806

import triton
import triton.language as tl

NUMBERS = (
    "eta", "gamma_pos", "gamma_neg", "gamma_hc", "target_prob", "non_target_prob", "pos_factor", "neg_factor", "margin",
    "label_smoothing", "scale",
)  # fmt: skip
"""Arguments of the kernels that are the bits of float64 numbers; to compile them again for some values is useless."""


@triton.jit
def from_bits(bits, dtype: tl.constexpr):
    """Return the float64 number of these bits in another dtype."""
    return tl.full((), bits, tl.int64).to(tl.float64, bitcast=True).to(dtype)


@triton.jit
def finite(x):
    """Replace -inf by a finite number, so that 0 * log 0 is 0."""
    return tl.maximum(x, -1e30)


@triton.jit
def log1p(x):
    u = 1 + x  # its rounding error cancels in x / d
    d = u - 1
    return tl.where(d == 0, x, tl.log(u) * (x / tl.where(d == 0, 1.0, d)))


@triton.jit
def one_minus_exp(x):
    """Return 1 - e^x for x <= 0: a Taylor series where that cancels (the interpreter lacks libdevice's expm1)."""
    TERMS: tl.constexpr = 15 if x.dtype == tl.float64 else 8
    series = tl.full(x.shape, 1.0, x.dtype)
    for k in tl.static_range(TERMS):
        series = series * x * (1.0 / (TERMS + 1 - k)) + 1
    return tl.where(x > -0.35, -x * series, 1 - tl.exp(x))


@triton.jit
def power_and_slope(base, exponent, WHOLE: tl.constexpr):
    """Return base^exponent for base >= 0, and its derivative, which is 0 at 0 also for exponents below 1."""
    if WHOLE < 0:
        positive = tl.where(base == 0, 1.0, base)
        value = tl.where(base == 0, 0.0, tl.exp(exponent * tl.log(positive)))
        slope = exponent * value / positive
    else:
        value = tl.full(base.shape, 1.0, base.dtype)
        slope = tl.full(base.shape, 0.0, base.dtype)
        for _ in tl.static_range(WHOLE):
            slope = slope * base + value
            value = value * base
    return value, slope


@triton.jit
def power_of_exp(base, logarithm, exponent, WHOLE: tl.constexpr):
    """Return base^exponent from the logarithm of the base."""
    if WHOLE < 0:
        value = tl.exp(exponent * logarithm)
    else:
        value = tl.full(base.shape, 1.0, base.dtype)
        for _ in tl.static_range(WHOLE):
            value = value * base
    return value


@triton.jit
def side_weight(p, not_p, eta, gamma, gamma_hc, WHOLE: tl.constexpr, HC: tl.constexpr):
    """Return the weight of a side of probability p, and its derivative by p."""
    hard, hard_slope = power_and_slope(not_p, gamma, WHOLE)
    easy, easy_slope = power_and_slope(1 + p, gamma_hc, HC)
    return hard + eta * (easy - hard), eta * easy_slope - (1 - eta) * hard_slope


@triton.jit
def load_eta(eta, eta_pointer, dtype: tl.constexpr):
    """Load eta from device memory, where a schedule wrote it, or take the number that was passed."""
    return tl.load(eta_pointer).to(dtype) if eta_pointer is not None else from_bits(eta, dtype)


@triton.jit
def store_loss(loss, values, offset, valid, REDUCED: tl.constexpr):
    """Store every value, or their sum, one per program: without atomics the order of addition is always the same."""
    if REDUCED:
        tl.store(loss + tl.program_id(0), tl.sum(tl.where(valid, values, 0.0), 0))
    else:
        tl.store(loss + offset, values, mask=valid)


@triton.jit
def known_multiple(number, ALIGNED: tl.constexpr):
    """Return a number that the compiler knows to be a multiple, for wide loads; Triton alone tests for 16 only."""
    return number // ALIGNED * ALIGNED


@triton.jit
def rows_of_program(
    positions, tiles, batch_stride, position_stride, ALIGNED: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr
):
    """Return this program's rows: their indices, the start of their logits, and a mask of those that exist."""
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    sample = program // tiles
    position = program % tiles * ROWS + tl.arange(0, ROWS)
    start = sample * batch_stride + position * known_multiple(position_stride, ALIGNED)
    return sample * positions + position, start, position < positions


@triton.jit
def block_of_classes(start, rows, begin, classes, class_stride, BLOCK: tl.constexpr):
    """Return the offsets of a block of classes, and a mask of those that exist."""
    lane = begin + tl.arange(0, BLOCK)
    offsets = start[:, None] + lane.to(start.dtype)[None, :] * class_stride
    return offsets, rows[:, None] & (lane < classes)[None, :]


@triton.jit
def load_class_weights(weight, begin, classes, BLOCK: tl.constexpr):
    lane = begin + tl.arange(0, BLOCK)
    return tl.load(weight + lane, mask=lane < classes, other=0.0)
