"""Fill places in documents, between ``<!-- KIND: WHAT -->`` and ``<!-- end of KIND -->``, with tables of records.

``python -m cyclofocal.lab.report.documents PAGE...`` updates the evidence of some pages.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from cyclofocal.lab.report.answer import answer
from cyclofocal.lab.report.experiment import group_experiments
from cyclofocal.lab.report.export import ranks_markdown, verdicts_markdown
from cyclofocal.lab.report.load import read_runs
from cyclofocal.lab.report.ranking import ranking
from cyclofocal.lab.report.result_tables import means_over, means_table, metric_table, overview_table
from cyclofocal.lab.report.summary import Summary, common_primary, summaries
from cyclofocal.lab.report.table import to_markdown

EVIDENCE = "evidence"


def fill(page: Path, kind: str, render: Callable[[str], str]) -> str:
    """Return the page with ``render(WHAT)`` in each place of this kind.

    Raises:
        ValueError: the page has no such place.
    """
    text = page.read_text(encoding="utf-8")
    if not (place := _place(kind)).search(text):
        raise ValueError(f"{page} has no place for it: <!-- {kind}: ... --> ... <!-- end of {kind} -->")
    return place.sub(lambda found: f"{found[1]}\n{render(found[2]).strip()}\n\n{found[3]}", text)


def has_place(page: Path, kind: str) -> bool:
    """True if the file exists and has a place of this kind."""
    return page.exists() and _place(kind).search(page.read_text(encoding="utf-8")) is not None


def _place(kind: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {kind}: ([^>]+?) -->\n).*?(<!-- end of {kind} -->)", re.DOTALL)


def with_evidence(page: Path) -> str:
    """Return the page with the tables of its records.

    A place is ``<!-- evidence: VIEW FILE... -->``. FILE is a .jsonl file or a folder, relative to the page; VIEW
    is one of ``table`` (the default: all losses in the primary metric), ``verdicts``, ``metrics`` (means in all
    metrics), ``overview`` (many experiments side by side), ``experiments`` (the same, an experiment per line),
    ``ranks``, ``means`` (over the experiments of two classes), ``answer`` (the sentences that a report begins with).
    ``metric=KEY`` and ``reference=NAME`` may follow.

    Raises:
        ValueError: the page has no such place, or one that names no record.
        FileNotFoundError: a file that it names.
    """
    return fill(page, EVIDENCE, lambda what: _evidence(page.parent, what))


def _evidence(folder: Path, what: str) -> str:
    words = what.split()
    view = words.pop(0) if words[0] in VIEWS else "table"
    options = dict(word.split("=", 1) for word in words if "=" in word)
    if unknown := sorted(options.keys() - {"metric", "reference"}):
        raise ValueError(f"evidence {what!r}: {unknown[0]} is no option; metric and reference are")
    records, _ = read_runs([folder / word for word in words if "=" not in word])
    if not records:
        raise ValueError(f"evidence {what!r}: there is no record")
    found = summaries(group_experiments(records), options.get("reference", ""), options.get("metric", ""))
    return VIEWS[view](found)


def _of_each(view: Callable[[Summary], str]) -> Callable[[Sequence[Summary]], str]:
    """Render each experiment, with titles if there are several."""

    def render(found: Sequence[Summary]) -> str:
        heads = [f"**{summary.experiment.title}**\n\n" if len(found) > 1 else "" for summary in found]
        return "\n\n".join(head + view(summary) for head, summary in zip(heads, found, strict=True))

    return render


def _ranks(found: Sequence[Summary]) -> str:
    ranked = ranking(found)
    if ranked is None:
        raise ValueError("ranks need two or more experiments that share two or more losses")
    return ranks_markdown(ranked)


VIEWS: dict[str, Callable[[Sequence[Summary]], str]] = {
    "table": _of_each(lambda summary: to_markdown(metric_table(summary, summary.primary))),
    "verdicts": _of_each(verdicts_markdown),
    "metrics": _of_each(lambda summary: to_markdown(means_table(summary))),
    "overview": lambda found: to_markdown(overview_table(found).transposed(common_primary(found).heading)),
    "experiments": lambda found: to_markdown(overview_table(found)),
    "means": lambda found: to_markdown(means_over(found)),
    "ranks": _ranks,
    "answer": _of_each(lambda summary: "\n".join(f"* {sentence}" for sentence in answer(summary))),
}


def update_pages(
    pages: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, help="Markdown pages with places for evidence.")
    ],
) -> None:
    """Update the evidence of every page from the records that its places name."""
    for page in pages:
        page.write_text(with_evidence(page), encoding="utf-8")


if __name__ == "__main__":
    typer.run(update_pages)
