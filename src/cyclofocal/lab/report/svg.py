"""Draw small SVG pictures in the colours of the page: scales, axes, lines, bands and dots."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]
NICE = (1, 2, 5, 10)
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class AxisScale:
    """Map of values from ``low`` to ``high`` (above 0 if ``log``) to pixels from ``start`` to ``end``.

    Example:
        >>> scale = AxisScale(0.0, 10.0, 100.0, 200.0)
        >>> scale(5.0), scale.ticks()
        (150.0, [0, 2, 4, 6, 8, 10])
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.high <= self.low:
            return (self.start + self.end) / 2
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + (self.end - self.start) * share

    def ticks(self, most: int = 6) -> list[float]:
        """Round values, at most ``most``; on a logarithmic scale powers of ten and, if they fit, their multiples."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for factors in ((1, 2, 5), (1, 3), (1,)):
                found = [f * 10.0**power for power in powers for f in factors]
                found = [tick for tick in found if self.low <= tick * (1 + 1e-9) and tick <= self.high * (1 + 1e-9)]
                if len(found) <= most:
                    break
            return found
        step = round_step((self.high - self.low) / most or 1.0)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below ``least``.

    Example:
        >>> round_step(0.3), round_step(7)
        (0.5, 10)
    """
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor for factor in NICE if factor * power >= least * (1 - 1e-9)) * power
    return int(step) if step >= 1 else float(f"{step:.0e}")


def picture(width: float, height: float, parts: Iterable[str], title: str, description: str) -> str:
    """SVG element that scales with its container; ``description`` is its text alternative."""
    label = escape(f"{title}. {description}", quote=True)
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def line(points: Sequence[Point], css: str) -> str:
    """Line through all points."""
    return f'<polyline class="{css}" points="{_points(points)}"/>'


def band(lower: Sequence[Point], upper: Sequence[Point], css: str) -> str:
    """Area between two lines."""
    return f'<polygon class="{css}" points="{_points([*lower, *reversed(upper)])}"/>'


def dot(x: float, y: float, radius: float, css: str) -> str:
    return f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'


def rectangle(x: float, y: float, width: float, height: float, css: str, opacity: float | None = None) -> str:
    """Rectangle; ``opacity`` of its filling in [0, 1], by default that of its class."""
    filling = "" if opacity is None else f' fill-opacity="{opacity:.2f}"'
    size = f'width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
    return f'<rect class="{css}" x="{x:.1f}" y="{y:.1f}" {size}{filling}/>'


def text(x: float, y: float, content: str, css: str = "", anchor: str = "start") -> str:
    """Text at a point; ``anchor`` is "start", "middle" or "end"."""
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def x_axis(scale: AxisScale, y: float, label: str, top: float | None = None, most: int = 6) -> str:
    """Horizontal axis at ``y`` with ticks, values and a label; grid lines up to ``top`` if it is given."""
    parts = [line([(scale.start, y), (scale.end, y)], "axis")]
    for tick in scale.ticks(most):
        x = scale(tick)
        parts.append(line([(x, y), (x, y + 4 if top is None else top)], "axis" if top is None else "grid"))
        parts.append(text(x, y + 15, tick_label(tick), "tick", "middle"))
    parts.append(text((scale.start + scale.end) / 2, y + 30, label, "label", "middle"))
    return "".join(parts)


def y_axis(scale: AxisScale, x: float, label: str, right: float, most: int = 5) -> str:
    """Vertical axis at ``x`` with values, grid lines to ``right`` and a label above."""
    parts = []
    for tick in scale.ticks(most):
        y = scale(tick)
        parts += [
            line([(x, y), (right, y)], "grid"),
            text(x - 5, y + 4, tick_label(tick), "tick", "end"),
        ]
    return "".join([*parts, text(4, scale.end - 10, label, "label")])


def tick_label(value: float) -> str:
    """Text of a tick without rounding errors.

    Example:
        >>> tick_label(0.30000000000000004), tick_label(2000.0), tick_label(-0.0), tick_label(-2)
        ('0.3', '2,000', '0', '−2')
    """
    shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.10g}"
    return "0" if shown == "-0" else shown.replace("-", MINUS)


def _points(points: Iterable[Point]) -> str:
    return " ".join([f"{x:.1f},{y:.1f}" for x, y in points])
