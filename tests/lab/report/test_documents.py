"""Promise: the evidence of a page comes from its records; nothing else of the page changes."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from cyclofocal.lab.report.documents import EVIDENCE, fill, has_place, with_evidence
from cyclofocal.lab.report.result_tables import metric_table
from cyclofocal.lab.report.summary import summarise
from cyclofocal.lab.report.table import to_markdown
from evidence import data_sets, grid

ROOT = Path(__file__).parents[3]
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if has_place(page, EVIDENCE)]


@pytest.fixture
def page(tmp_path):
    for name, records in (("digits", grid(10)), ("sets", data_sets(6))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(asdict(r)) + "\n" for r in records))

    def write(what):
        path = tmp_path / "page.md"
        path.write_text(f"before\n<!-- evidence: {what} -->\nold\n<!-- end of evidence -->\nafter\n")
        return path

    return write


def test_the_table_of_the_named_records_fills_the_place(page):
    text = with_evidence(page("digits.jsonl"))
    summary = summarise(list(grid(10)))
    assert to_markdown(metric_table(summary, summary.primary)) in text
    assert "old" not in text
    assert text.startswith("before\n<!-- evidence: digits.jsonl -->\n")
    assert text.endswith("<!-- end of evidence -->\nafter\n")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("verdicts digits.jsonl", "* cyclical focal: significantly better than cross-entropy"),
        ("metrics digits.jsonl", "| loss | balanced accuracy, % |"),
        ("table digits.jsonl metric=nll reference=focal", "| focal | 0."),
        ("overview sets.jsonl digits.jsonl", "| data set 5 |"),
        ("ranks sets.jsonl", "| cyclical focal | 1.00 | 6 |"),
        ("answer digits.jsonl", "* Use cyclical focal: "),
    ],
)
def test_views(page, what, words):
    once = page(what)
    once.write_text(with_evidence(once))
    assert words in once.read_text()
    assert with_evidence(once) == once.read_text()


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("nowhere.jsonl", FileNotFoundError, "nowhere.jsonl does not exist"),
        ("ranks digits.jsonl", ValueError, "two or more experiments"),
        ("table digits.jsonl metrik=nll", ValueError, "metrik is no option"),
        ("table digits.jsonl metric=nil", ValueError, "metric is 'nil'"),
    ],
)
def test_evidence_that_cannot_be_made_is_refused(page, what, error, words):
    with pytest.raises(error, match=words):
        with_evidence(page(what))


def test_a_page_without_a_place_is_refused(tmp_path):
    (tmp_path / "a.md").write_text("nothing\n")
    with pytest.raises(ValueError, match="has no place"):
        fill(tmp_path / "a.md", EVIDENCE, str)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_evidence_of_the_documents_matches_the_records(page):
    assert with_evidence(page) == page.read_text(encoding="utf-8")
