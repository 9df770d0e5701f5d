"""Records to numbers to words: the summary of a comparison, its table and its conclusions."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cyclofocal.lab.longtail import ShotGroups
from cyclofocal.lab.metrics import METRICS, Metric
from cyclofocal.lab.records import RunRecord
from cyclofocal.lab.statistics import (
    LEVEL,
    Difference,
    Estimate,
    estimate,
    holm,
    paired_difference,
    pairs_needed,
    verdict,
)

DIGITS = 9
"""After the point; what rounding of floats leaves behind is far smaller."""

STYLES = {"better": "bold green", "worse": "bold red", "unclear": "dim", "too few": "dim"}


@dataclass(frozen=True)
class Versus:
    """A loss against the reference in one metric, paired by seed."""

    difference: Difference
    per_seed: tuple[float, ...]
    corrected_p: float
    verdict: str


@dataclass(frozen=True)
class Row:
    """One loss in one metric; numbers in the metric's unit (percent where it is one)."""

    metric: Metric
    loss: str
    estimate: Estimate
    versus: Versus | None  # None: this is the reference


@dataclass(frozen=True)
class Summary:
    """All rows, metric by metric, and what is needed to read them."""

    rows: tuple[Row, ...]
    reference: str
    recipe: dict
    train_counts: tuple[int, ...]
    seeds: int
    comparisons: int

    def of_metric(self, metric: Metric) -> list[Row]:
        return [row for row in self.rows if row.metric == metric]

    @property
    def metrics(self) -> list[Metric]:
        return list(dict.fromkeys(row.metric for row in self.rows))


def summarise(records: Sequence[RunRecord], reference: str) -> Summary:
    """Means, paired differences to the loss named ``reference``, and p corrected over all of them.

    A metric that no run has (a shot group without classes) is left out; a seed that either loss lacks makes no pair.
    """
    by_loss: dict[str, list[RunRecord]] = {}
    for record in records:
        by_loss.setdefault(record.loss["name"], []).append(record)
    cells = [(metric, name) for metric in METRICS for name in by_loss if _values(by_loss[name], metric)]
    estimates = {cell: estimate(list(_values(by_loss[cell[1]], cell[0]).values())) for cell in cells}
    pairs = {
        (metric, name): _paired(_values(by_loss[name], metric), _values(by_loss[reference], metric))
        for metric, name in cells
        if name != reference
    }
    differences = {cell: paired_difference(*pair) for cell, pair in pairs.items()}
    corrected = dict(zip(differences, holm([d.p for d in differences.values()]), strict=True))
    title = {name: runs[0].loss["title"] for name, runs in by_loss.items()}

    def versus(metric: Metric, name: str) -> Versus | None:
        if name == reference:
            return None
        difference, p = differences[metric, name], corrected[metric, name]
        per_seed = tuple(round(a - b, DIGITS) for a, b in zip(*pairs[metric, name], strict=True))
        return Versus(difference, per_seed, p, verdict(difference, p, len(differences), metric.higher_is_better))

    return Summary(
        rows=tuple(Row(m, title[name], estimates[m, name], versus(m, name)) for m, name in cells),
        reference=title[reference],
        recipe=records[0].recipe,
        train_counts=tuple(records[0].train_counts),
        seeds=len({record.seed for record in records}),
        comparisons=len(differences),
    )


def table(summary: Summary, columns: int) -> Table:
    """The rows as a table that fits 90 columns, set tighter to fit 80 where there are fewer."""
    padding = (0, 1) if columns >= 90 else (0, 0)
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=padding, title=summary.recipe["title"])
    shown.title_style, shown.title_justify = "bold", "left"
    shown.add_column("", no_wrap=True)
    for heading in ("mean [95 % interval]", f"minus {summary.reference}", "p"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("", no_wrap=True)
    for metric in summary.metrics:
        arrow = "higher is better" if metric.higher_is_better else "lower is better"
        shown.add_row(f"[bold]{metric.heading}[/]", f"[dim]{arrow}[/]")
        rows = summary.of_metric(metric)
        for row in rows:
            shown.add_row(*_cells(row), end_section=row is rows[-1])
    return shown


def conclusions(summary: Summary) -> list[str]:
    """One sentence per loss, in plain words; one in all when there are too few seeds for any."""
    needed = pairs_needed(summary.comparisons)
    if summary.comparisons and summary.seeds < needed:
        return [
            f"Too few seeds to conclude anything: {summary.comparisons} comparisons need {needed} or more,"
            f" these are {summary.seeds}."
        ]
    losses = dict.fromkeys(row.loss for row in summary.rows if row.versus)
    return [_conclusion(summary, loss) for loss in losses]


def explanations(summary: Summary) -> list[str]:
    """What a reader must know to read the table."""
    recipe, groups = summary.recipe, ShotGroups(**summary.recipe["groups"])
    lines = [
        f"{summary.seeds} seeds, {recipe['epochs']} epochs; test set touched once, after the last epoch.",
        f"Training images per class: {_counts(summary.train_counts)}. Shot groups ({groups.name}): "
        + f"many >= {groups.many_from}, few <= {groups.few_up_to}.",
        "NLL: negative log-likelihood. ECE: expected calibration error (15 bins).",
        "Intervals: 95 %, BCa bootstrap over seeds. Differences: paired by seed; a verdict needs 0 outside theirs.",
        f"p: sign-flip test, Holm-corrected over the {summary.comparisons} comparisons of this table; a verdict needs"
        f" p < {LEVEL}.",
    ]
    if recipe.get("test_per_class"):
        images = recipe["test_per_class"]
        lines.insert(3, f"Test images: {images} per class, so accuracy and balanced accuracy are the same number.")
    return lines


def _counts(counts: tuple[int, ...]) -> str:
    return " ".join(map(str, counts)) if len(counts) <= 20 else f"{max(counts)} to {min(counts)}"


def number(value: float, metric: Metric, sign: bool = False) -> str:
    """A value in the metric's precision, in ASCII."""
    text = f"{value:{'+' if sign else ''}.{1 if metric.percent else 3}f}"
    return text.replace("-0.0", "0.0").replace("+0.0", "0.0") if float(text) == 0 else text


def _values(runs: Sequence[RunRecord], metric: Metric) -> dict[int, float]:
    """By seed, rounded so that equal counts are equal numbers: a tie is no difference."""
    scale = 100 if metric.percent else 1
    values = {run.seed: run.metrics.get(metric.key) for run in runs}
    return {seed: round(scale * value, DIGITS) for seed, value in values.items() if value is not None}


def _paired(values: dict[int, float], reference: dict[int, float]) -> tuple[list[float], list[float]]:
    shared = sorted(values.keys() & reference.keys())
    return [values[seed] for seed in shared], [reference[seed] for seed in shared]


def _cells(row: Row) -> tuple[str, ...]:
    mean = _with_interval(row.estimate, row.metric)
    if row.versus is None:
        return f"  {row.loss}", mean
    difference = _with_interval(row.versus.difference.estimate, row.metric, sign=True)
    p = f"{row.versus.corrected_p:.3f}" if row.versus.corrected_p >= 0.001 else "<0.001"
    style = STYLES[row.versus.verdict]
    return f"  {row.loss}", mean, difference, p, f"[{style}]{row.versus.verdict}[/]"


def _with_interval(value: Estimate, metric: Metric, sign: bool = False) -> str:
    mean = number(value.mean, metric, sign)
    if value.interval is None:
        return mean
    return rf"{mean} \[{', '.join(number(bound, metric, sign) for bound in value.interval)}]"


def _conclusion(summary: Summary, loss: str) -> str:
    found: dict[str, list[str]] = {"better": [], "worse": []}
    for row in summary.rows:
        if row.loss == loss and row.versus and row.versus.verdict in found:
            found[row.versus.verdict].append(row.metric.title)
    said = [f"{word} than {summary.reference} in {', '.join(metrics)}" for word, metrics in found.items() if metrics]
    if not said:
        return f"{loss}: no difference to {summary.reference} is shown."
    return f"{loss}: {'; '.join(said)}. In the rest no difference is shown."
