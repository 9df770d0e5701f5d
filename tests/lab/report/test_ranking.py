"""Promise: ranks, tests, wins and losses over data sets equal those by hand and by scipy."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy import stats

from cyclofocal.lab.recipes.loss import SMOOTHED
from cyclofocal.lab.report.experiment import group_experiments
from cyclofocal.lab.report.export import markdown_report
from cyclofocal.lab.report.html import page
from cyclofocal.lab.report.ranking import WinTieLoss, critical_difference, difference_p, ranking
from cyclofocal.lab.report.summary import summaries
from evidence import data_sets, grid


def ranked(records, **options):
    return ranking(summaries(group_experiments(list(records)), **options))


@pytest.mark.parametrize(
    ("losses", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)]
)  # Demšar 2006, table 5a
def test_critical_difference_is_the_published_one(losses, q):
    assert critical_difference(losses, 14) == pytest.approx(q * np.sqrt(losses * (losses + 1) / (6 * 14)), rel=1e-3)


def test_p_is_that_of_friedman_and_of_wilcoxon():
    scores = np.random.default_rng(0).normal(size=(12, 4))
    assert difference_p(scores) == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)
    assert difference_p(scores[:, :2]) == pytest.approx(stats.wilcoxon(scores[:, 0] - scores[:, 1]).pvalue)
    assert difference_p(np.ones((6, 3))) == 1.0


def test_ranks_and_tallies():
    found = ranked(data_sets(6))
    assert found.ranks == {"cyclical focal": 1.0, "cross-entropy": 2.5, "focal": 2.5}  # focal ties in every run
    assert found.tallies["cyclical focal"] == WinTieLoss(wins=6, ties=0, losses=0, better=6, worse=0)
    assert found.tallies["focal"] == WinTieLoss(wins=0, ties=6, losses=0, better=0, worse=0)
    assert "cross-entropy" not in found.tallies


def test_lower_is_better_ranks_the_lowest_first():
    found = ranked(data_sets(6), metric="nll")
    assert list(found.ranks)[-1] == "cyclical focal"
    assert found.tallies["cyclical focal"].losses == 6


def test_few_data_sets_have_no_significant_pairs():
    assert ranked(data_sets(3)).significant_pairs() == []
    assert ranked(data_sets(12)).significant_pairs()[0][0] == "cyclical focal"


def test_losses_and_data_sets_left_out_are_named():
    whole = list(data_sets(6))
    incomplete = [r for r in whole if not (r.recipe["name"] == "set-2" and r.loss["name"] == "focal")]
    found = ranked(incomplete)
    assert len(found.data_sets) == 5
    assert any("data set 2" in note for note in found.notes)
    rare = [r for r in grid(7) if r.loss["name"] == "ce"]
    rare = [type(r)(**{**vars(r), "loss": asdict(SMOOTHED), "recipe": whole[0].recipe}) for r in rare]
    assert any("label smoothing" in note for note in ranked([*whole, *rare]).notes)


def unlike(count, more):
    """Data sets of three losses, and of these further ones by the number of the data set."""
    records = list(data_sets(count))
    for number, names in more.items():
        focal = [r for r in records if r.recipe["name"] == f"set-{number}" and r.loss["name"] == "focal"]
        records += [replace(r, loss=r.loss | {"name": name, "title": name}) for r in focal for name in names]
    return records


@pytest.mark.parametrize("more", [{}, {0: "a"}, {0: "a", 1: "b"}, {0: "ab"}])
def test_losses_that_both_experiments_have_are_ranked(more):
    found = ranked(unlike(2, more))
    assert found.ranks == ranked(data_sets(2)).ranks
    assert found.data_sets == ("data set 0", "data set 1")
    others = ", ".join(name for names in more.values() for name in names)
    assert [others in note for note in found.notes] == ([True] if more else [])


def test_experiments_without_two_losses_in_common_are_not_ranked():
    ce = [r for r in data_sets(2) if r.recipe["name"] == "set-0" or r.loss["name"] == "ce"]
    found = summaries(group_experiments(ce))
    assert ranking(found) is None
    for text in (markdown_report(found), page(found)):
        assert "The losses are not ranked: no two losses are in every experiment." in text


def test_one_experiment_has_no_ranking():
    assert ranked(grid(7)) is None
