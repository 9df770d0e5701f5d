"""Tables, sentences and pictures say what the records say, and no more."""

import io
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace

import numpy as np
import pytest
from rich.console import Console

from cyclofocal.lab.figure import draw
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.recipe import CROSS_ENTROPY, CYCLICAL, FOCAL
from cyclofocal.lab.records import RunRecord
from cyclofocal.lab.report import conclusions, explanations, summarise, table


def record(loss, seed, accuracy, nll, few=0.5):
    metrics = {
        "accuracy": accuracy,
        "balanced_accuracy": accuracy,
        "many": accuracy,
        "medium": accuracy,
        "few": few,
        "nll": nll,
        "ece": 0.05,
    }
    return RunRecord(asdict(digits()), asdict(loss), seed, {}, "cpu", [100, 2], [], metrics, 1.0)


def grid(seeds, gain=0.01, few=0.5):
    """Cyclical: accuracy better by about ``gain`` at every seed, NLL worse; focal: as cross-entropy."""
    rng = np.random.default_rng(0)
    for seed in range(seeds):
        base = 0.8 + 0.05 * rng.random()
        yield record(CROSS_ENTROPY, seed, base, 0.5, few)
        yield record(FOCAL, seed, base, 0.5 + rng.normal(0, 0.01), few)
        yield record(CYCLICAL, seed, base + gain * (1 + 0.1 * rng.random()), 0.6 + 0.01 * rng.random(), few)


def printed(summary, columns):
    console = Console(file=io.StringIO(), width=columns)
    console.print(table(summary, columns))
    return console.file.getvalue()


def test_differences_are_paired_by_seed_whatever_the_order():
    records = list(grid(10))
    summary = summarise(records, "ce")
    assert summarise(list(reversed(records)), "ce").comparisons == summary.comparisons == 14
    by_seed = {(r.loss["name"], r.seed): r.metrics["accuracy"] for r in records}
    (row,) = [r for r in summary.rows if r.metric.key == "accuracy" and r.loss == "cyclical focal"]
    expected = [100 * (by_seed["cyclical", seed] - by_seed["ce", seed]) for seed in range(10)]
    assert row.versus.per_seed == pytest.approx(expected)
    assert row.versus.difference.estimate.mean == pytest.approx(np.mean(expected))


def test_a_seed_that_one_loss_lacks_makes_no_pair():
    records = [r for r in grid(10) if not (r.seed == 3 and r.loss["name"] == "ce")]
    for row in summarise(records, "ce").rows:
        if row.versus:
            assert row.versus.difference.estimate.n == 9
            assert row.estimate.n == 10


def test_verdicts_respect_which_way_is_better():
    said = conclusions(summarise(list(grid(10)), "ce"))
    assert said[0] == "focal: no difference to cross-entropy is shown."
    assert said[1].startswith("cyclical focal: better than cross-entropy in accuracy, balanced accuracy")
    assert "worse than cross-entropy in negative log-likelihood" in said[1]


def test_a_loss_that_loses_is_said_to_lose():
    assert "worse than cross-entropy in accuracy" in conclusions(summarise(list(grid(10, gain=-0.01)), "ce"))[1]


def test_too_few_seeds_conclude_nothing():
    summary = summarise(list(grid(5)), "ce")
    assert conclusions(summary) == ["Too few seeds to conclude anything: 14 comparisons need 10 or more, these are 5."]
    assert {row.versus.verdict for row in summary.rows if row.versus} == {"too few"}


def test_one_seed_is_a_table_without_intervals(tmp_path):
    summary = summarise(list(grid(1)), "ce")
    assert printed(summary, 100).count("[") == 1  # the heading's
    draw(summary, tmp_path / "one.png")


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_the_table_fits_and_loses_nothing(columns):
    text = printed(summarise(list(grid(10)), "ce"), columns)
    assert max(map(len, text.splitlines())) <= columns
    assert "…" not in text
    assert len(re.findall(r"\d \[.*\] +[+-]?\d.* \[.*\] +(?:\d\.\d{3}|<0\.001) +\w+", text)) == 14


def test_a_group_without_classes_is_left_out():
    summary = summarise(list(grid(10, few=None)), "ce")
    assert "few" not in [metric.key for metric in summary.metrics]


def test_equal_runs_are_no_difference():
    ties = [replace(r, loss=asdict(FOCAL)) for r in grid(10) if r.loss["name"] == "ce"]
    summary = summarise([*[r for r in grid(10) if r.loss["name"] == "ce"], *ties], "ce")
    assert {row.versus.verdict for row in summary.rows if row.versus} == {"unclear"}
    assert {row.versus.corrected_p for row in summary.rows if row.versus} == {1.0}


def test_explanations_name_counts_convention_and_correction():
    text = "\n".join(explanations(summarise(list(grid(10)), "ce")))
    for words in ("100 2", "many >= 40, few <= 10", "Holm", "14 comparisons", "10 seeds", "15 bins"):
        assert words in text


def test_the_picture_is_written_in_both_formats(tmp_path):
    summary = summarise(list(grid(10)), "ce")
    draw(summary, tmp_path / "a.png")
    draw(summary, tmp_path / "a.svg")
    draw(summary, tmp_path / "b.svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
