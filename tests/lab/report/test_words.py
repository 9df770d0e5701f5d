"""Sentences say the direction, the size, the interval and no more than is shown."""

from dataclasses import replace

from cyclofocal.lab.report import conclusions, explanations, ranking, summaries, summarise
from cyclofocal.lab.report.experiment import experiments
from cyclofocal.lab.report.words import ranking_conclusions
from evidence import data_sets, grid


def test_better_worse_and_unclear():
    said = conclusions(summarise(list(grid(10)), "ce"))
    assert said[0].startswith("focal: no difference to cross-entropy in balanced accuracy is shown")
    assert said[1].startswith("cyclical focal: better than cross-entropy; its balanced accuracy is higher (+1.")
    assert "Otherwise better in accuracy" in said[1]
    assert "worse in negative log-likelihood, Brier score." in said[1]


def test_a_loss_that_loses_is_said_to_lose():
    said = conclusions(summarise(list(grid(10, gain=-0.01)), "ce"))[1]
    assert "worse than cross-entropy; its balanced accuracy is lower (-1." in said


def test_lower_is_better_where_it_is():
    said = conclusions(summarise(list(grid(10)), metric="nll"))[1]
    assert "worse than cross-entropy; its negative log-likelihood is higher (+0.10" in said
    assert "nats" in said


def test_unclear_says_how_many_seeds_would_be_needed():
    said = conclusions(summarise(list(grid(10)), metric="nll"))[0]
    assert "no difference to cross-entropy in negative log-likelihood is shown" in said
    assert "seeds would be needed to show one of this size" in said


def test_too_few_seeds_conclude_nothing():
    summary = summarise(list(grid(6)), "ce")
    assert conclusions(summary) == ["Nothing can be concluded: 6 seeds are too few, 2 comparisons need 7 or more."]
    assert {row.versus.verdict for row in summary.rows if row.versus} == {"too few"}


def test_a_loss_with_fewer_seeds_is_named():
    records = [r for r in grid(8) if r.loss["name"] != "focal" or r.seed < 5]
    said = conclusions(summarise(records))
    assert said[0].startswith("focal: nothing can be concluded; 5 seeds are too few")
    assert said[1].startswith("cyclical focal: better")


def test_explanations_name_counts_convention_and_correction():
    text = "\n".join(explanations(summarise(list(grid(10)), "ce")))
    for words in (
        "samples: 132 for train, 100 for test",
        "cat: 100, dog: 30, owl: 2",
        "many >= 40, few <= 10",
        "Holm",
        "2 comparisons",
        "16 comparisons together",
        "10 seeds",
        "15 bins",
    ):
        assert words in text


def test_many_classes_are_told_by_the_largest_and_the_smallest():
    counts, names = list(range(1, 41)), [f"bird {c}" for c in range(40)]
    many = [replace(r, train_counts=counts, per_class=[0.5] * 40, classes=names) for r in grid(2)]
    assert "40 classes, from bird 39 (40) to bird 0 (1)." in "\n".join(explanations(summarise(many)))


def test_records_of_before_names_and_sizes_were_kept():
    text = "\n".join(explanations(summarise([replace(r, classes=[], samples={}) for r in grid(2)])))
    assert "Training samples per class: 0: 100, 1: 30, 2: 2." in text
    assert "; samples:" not in text


def test_over_data_sets_wins_and_ranks_are_told():
    said = ranking_conclusions(ranking(summaries(experiments(list(data_sets(12))))))
    assert said[0].startswith("Over 12 data sets the losses' ranks differ (Friedman, p <0.001): cyclical focal (1.00)")
    assert "cyclical focal: above cross-entropy on 12 data sets (shown on 12), level on 0, below on 0" in said[1]


def test_few_data_sets_conclude_nothing():
    said = ranking_conclusions(ranking(summaries(experiments(list(data_sets(3))))))
    assert said[0].startswith("3 data sets are too few to conclude anything")
