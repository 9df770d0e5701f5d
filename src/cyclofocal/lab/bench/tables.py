"""Tables of measurements: for the terminal, and in Markdown for the docs."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from cyclofocal.lab.bench.candidates import REFERENCES
from cyclofocal.lab.bench.record import Measurement
from cyclofocal.lab.report.documents import fill
from cyclofocal.lab.report.table import NONE, Column, ReportTable, TableCell, to_markdown

MIN_ROUNDS_OF_SPREAD = 3
"""Number of rounds below which quantiles are not shown."""


def shape_table(records: Sequence[Measurement]) -> ReportTable:
    """Build the table of one family and shape, fastest loss first."""
    reference = REFERENCES[records[0].family]
    title = f"{records[0].shape_title}: {records[0].setting}"
    columns = [Column("loss", "text"), *map(Column, ("ms (20..80 %)", f"x {reference}", "memory, x logits"))]
    rows = []
    for record in sorted(_measured(records), key=_median):
        mark = "own" if record.is_cyclofocal else "reference" if record.loss == reference else ""
        spreads = _spread(record.milliseconds, record.rounds, 3), _spread(record.ratio, record.rounds, 2)
        rows.append([TableCell(text, mark=mark) for text in (record.loss, *spreads, _memory([record]))])
    return ReportTable(title, columns, rows)


def skipped_losses(records: Sequence[Measurement]) -> list[str]:
    """List the losses that were not measured, with reasons."""
    return [f"not measured: {record.loss}: {record.skipped}" for record in records if record.skipped]


def markdown_speed(records: Sequence[Measurement]) -> str:
    """Build one table per setting and family: losses down, shapes across, each cell the ratio to torch's loss."""
    groups = dict.fromkeys((record.setting, record.family) for record in records)
    tables = [_page_table([r for r in records if (r.setting, r.family) == group]) for group in groups]
    return "\n\n".join(tables) + "\n"


def paste(page: Path, records: Sequence[Measurement]) -> None:
    """Replace the tables of a page, between ``<!-- speed: table -->`` and ``<!-- end of speed -->``.

    Raises:
        ValueError: the page has no such markers.
    """
    text = fill(page, "speed", lambda _: markdown_speed(records))
    page.write_text(text, encoding="utf-8")


def overall(records: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    """Group measurements by loss, the fastest over all shapes (geometric mean of the ratios) first."""
    by_loss: dict[str, list[Measurement]] = {}
    for record in _measured(records):
        by_loss.setdefault(record.loss, []).append(record)

    def mean(loss: str) -> float:
        return sum(math.log(_ratio(record)) for record in by_loss[loss]) / len(by_loss[loss])

    return {loss: by_loss[loss] for loss in sorted(by_loss, key=mean)}


def significant(value: float, digits: int) -> str:
    """Format a positive number with ``digits`` significant digits, and all those before the point.

    Example:
        >>> significant(0.01234, 2), significant(1.96, 2), significant(1085.4, 2)
        ('0.012', '2.0', '1,085')
    """
    if not value:
        return "0"
    magnitude = math.floor(math.log10(float(f"{value:.{digits - 1}e}")))
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def _measured(records: Sequence[Measurement]) -> list[Measurement]:
    return [record for record in records if not record.skipped]


def _median(record: Measurement) -> float:
    assert record.milliseconds is not None
    return record.milliseconds[1]


def _ratio(record: Measurement) -> float:
    assert record.ratio is not None
    return record.ratio[1]


def _spread(quantiles: Sequence[float] | None, rounds: int, digits: int) -> str:
    assert quantiles is not None
    low, middle, high = (significant(value, digits) for value in quantiles)
    return middle if rounds < MIN_ROUNDS_OF_SPREAD or low == high == middle else f"{middle} ({low}..{high})"


def _memory(records: Sequence[Measurement]) -> str:
    """Format the range over the shapes."""
    values = sorted(record.peak_memory for record in records if record.peak_memory is not None)
    low, high = (f"{value:.1f}" if value < 10 else f"{value:.0f}" for value in (values[0], values[-1]))
    return low if low == high else f"{low}..{high}"


def _mebibytes(record: Measurement) -> str:
    """Format the peak memory of a last layer, whose gradients are no multiple of the logits."""
    assert record.peak_memory is not None
    rows, _features, classes = record.shape
    return f"{significant(record.peak_memory * rows * classes * getattr(torch, record.dtype).itemsize / 2**20, 2)} MiB"


def _page_table(records: Sequence[Measurement]) -> str:
    setting, versions = records[0].setting, records[0].versions
    shapes = list(dict.fromkeys(record.shape_title for record in records))
    what = f"forward + backward, x {REFERENCES[records[0].family]}"
    memories = [f"memory, {shape}" for shape in shapes] if records[0].family == "layer" else ["memory, x logits"]
    columns = [*map(Column, (what, *shapes, *memories))]
    rows = [_page_row(loss, measured, shapes) for loss, measured in overall(records).items()]
    parts = [f"**{setting}; torch {versions['torch']}, Python {versions['python']}**"]
    parts.append(to_markdown(ReportTable("", columns, rows)))
    left_out = dict.fromkeys(f"{r.loss} ({r.shape_title}): {r.skipped}" for r in records if r.skipped)
    if left_out:
        parts += ["Not measured:", "\n".join(f"* {reason}" for reason in left_out)]
    return "\n\n".join(parts)


def _page_row(loss: str, records: Sequence[Measurement], shapes: Sequence[str]) -> list[TableCell]:
    found = {record.shape_title: record for record in records}
    memories = [_memory(records)]
    if records[0].family == "layer":
        memories = [_mebibytes(found[shape]) if shape in found else NONE.text for shape in shapes]
    texts = (loss, *(_page_text(found.get(shape)) for shape in shapes), *memories)
    return [TableCell(text, mark="own" if records[0].is_cyclofocal else "") for text in texts]


def _page_text(record: Measurement | None) -> str:
    if record is None:
        return NONE.text
    if record.loss in REFERENCES.values():
        return f"1 = {significant(_median(record), 3)} ms"
    return _spread(record.ratio, record.rounds, 2)
