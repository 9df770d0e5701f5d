"""Numbers, intervals and lists as text."""

from collections.abc import Sequence

from cyclofocal.lab.metrics import Metric
from cyclofocal.lab.report.statistics import Estimate


def format_value(value: float, metric: Metric, sign: bool = False) -> str:
    """Value with the decimals of its metric, in ASCII."""
    text = f"{value:{'+' if sign else ''}.{_decimals(metric)}f}"
    return text.replace("-0.0", "0.0").replace("+0.0", "0.0") if float(text) == 0 else text


def format_count(mean: float) -> str:
    """Number of samples, a mean over seeds: three digits, or all those before the point."""
    return f"{mean:.3g}" if mean < 100 else f"{mean:.0f}"


def _decimals(metric: Metric) -> int:
    return 1 if metric.percent else 3


def format_interval(value: Estimate, metric: Metric, sign: bool = False) -> str:
    """Interval as ``[70.1, 72.4]``; "" without one."""
    if value.interval is None:
        return ""
    return f"[{', '.join(format_value(bound, metric, sign) for bound in value.interval)}]"


def format_p(p: float) -> str:
    """P value with three decimals, or ``<0.001``.

    Example:
        >>> format_p(0.0312), format_p(0.00002)
        ('0.031', '<0.001')
    """
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def format_effect(effect: float | None) -> str:
    """Effect size with its sign; a dash without one."""
    return "–" if effect is None else f"{effect:+.{1 if abs(effect) < 10 else 0}f}"


def joined(names: Sequence[str], most: int, last: str = "and") -> str:
    """Names in a sentence, as "a, b and c"; beyond ``most`` the number of the others; with commas inside, semicolons.

    Example:
        >>> joined(["a", "b", "c"], 3, "or"), joined(["a", "b", "c"], 2), joined(["a, tuned", "b", "c"], 3)
        ('a, b or c', 'a, b and 1 more', 'a, tuned; b; and c')
    """
    shown = [*names] if len(names) <= most else [*names[:most], f"{len(names) - most} more"]
    if len(shown) > 2 and any("," in name for name in shown):
        return f"{'; '.join(shown[:-1])}; {last} {shown[-1]}"
    return f" {last} ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))


def spread(low: float, high: float) -> str:
    """Two numbers with one decimal, as "0.3 to 4.0"; one if they are equal then.

    Example:
        >>> spread(0.31, 4), spread(0.31, 0.29)
        ('0.3 to 4.0', '0.3')
    """
    return f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f}"


def tiny_amount(value: float, metric: Metric) -> str:
    """Bound of a difference that is printed as 0; "" for a larger one."""
    if float(format_value(value, metric)):
        return ""
    return f"less than {0.5 * 10 ** -_decimals(metric):g} {metric.unit_of_difference}".rstrip()


def amount(value: float, metric: Metric, sign: bool = False) -> str:
    """Value of a difference with its unit."""
    return f"{format_value(value, metric, sign)} {metric.unit_of_difference}".rstrip()
