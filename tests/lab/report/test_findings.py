"""Promise: findings give direction, size and interval, and claim no more than the statistics."""

from dataclasses import replace

import numpy as np
import pytest

from cyclofocal.lab.recipes.loss import CROSS_ENTROPY, FOCAL
from cyclofocal.lab.report.experiment import group_experiments
from cyclofocal.lab.report.explanations import explanations
from cyclofocal.lab.report.findings import adjusted_conclusion, conclusions, ranking_conclusions
from cyclofocal.lab.report.ranking import ranking
from cyclofocal.lab.report.summary import summaries, summarise
from evidence import data_sets, grid, measured, record


def test_better_worse_and_equivalent():
    said = conclusions(summarise(list(grid(10)), "ce"))
    assert said[0].startswith(
        "focal: equivalent to cross-entropy in balanced accuracy, within a margin of 0.5 points (0.0 points"
    )
    assert said[1].startswith(
        "cyclical focal: significantly better than cross-entropy; its balanced accuracy is higher (+1."
    )
    assert "Other metrics: significantly better in accuracy" in said[1]
    assert "significantly worse in negative log-likelihood, Brier score." in said[1]


def test_a_worse_loss_is_significantly_worse():
    said = conclusions(summarise(list(grid(10, gain=-0.01)), "ce"))[1]
    assert "significantly worse than cross-entropy; its balanced accuracy is lower (-1." in said


def test_lower_is_better_where_it_is():
    said = conclusions(summarise(list(grid(10)), metric="nll"))[1]
    assert "significantly worse than cross-entropy; its negative log-likelihood is higher (+0.10" in said
    assert "nats" in said


def test_not_significant_gives_the_required_seeds():
    said = conclusions(summarise(list(grid(10)), metric="nll"))[0]
    assert "no significant difference from cross-entropy in negative log-likelihood" in said
    assert "seeds would be needed to detect a difference of this size" in said


@pytest.mark.parametrize("spread", [2e-4, 0.01])
def test_no_seeds_are_asked_for_a_difference_that_rounds_to_0(spread):
    """However far the runs are apart; its size in words, for the number shows none."""
    gains = spread * np.array([-1, 0.5, 1, -0.5, 0.1, -0.1, 0.2, 0]) + 1e-5
    records = [record(CROSS_ENTROPY, seed, 0.8, nll=0.5) for seed in range(8)]
    records += [record(FOCAL, seed, 0.8 + gain, nll=0.5 + gain / 100) for seed, gain in enumerate(gains.tolist())]
    for metric, bound in (("accuracy", "0.05 points"), ("nll", "0.0005 nats")):
        (said,) = conclusions(summarise(records, metric=metric, margin=1e-9))
        assert "(0.0" in said
        assert said.endswith(f"; the observed difference is less than {bound}.")


def test_a_significant_difference_that_rounds_to_0_has_a_size():
    records = [record(CROSS_ENTROPY, seed, 0.8) for seed in range(8)]
    records += [record(FOCAL, seed, 0.8001 + seed / 1e8) for seed in range(8)]
    (said,) = conclusions(summarise(records))
    assert "its balanced accuracy is higher by less than 0.05 points (0.0 points [0.0, 0.0], p 0.008)" in said
    assert "significantly better than cross-entropy, but within a margin of 0.5 points; its" in said


def test_the_margin_is_that_of_the_runs_or_said_to_be_none():
    records = list(measured(grid(10)))
    for margin, declared, words in (
        (None, 0.5, "a margin of 0.5 points (declared when the runs were started)"),
        (None, 2.0, "a margin of 2 points (declared when the runs were started)"),
        (None, None, "a margin of 0.5 points (the default; the runs declare none)"),
        (1.0, 0.5, "a margin of 1 points (chosen afterwards, which is weaker evidence; the runs declare 0.5)"),
        (1.0, None, "a margin of 1 points (chosen afterwards, which is weaker evidence)"),
    ):
        lines = explanations(summarise([replace(r, margin=declared) for r in records], margin=margin))
        assert any(words in line for line in lines), words
    in_nats = explanations(summarise(records, metric="nll"))
    assert any("a margin of 0.005 nats (the default; the runs declare none)" in line for line in in_nats)


def test_a_loss_is_compared_with_adjusted_cross_entropy():
    said = adjusted_conclusion(summarise(list(measured(grid(10), gain=0.02))))
    assert said.startswith("Better than cross-entropy, post-hoc adjusted, in balanced accuracy: none significantly")
    assert "focal -2.0 [-2.0, -2.0], p 0.004, significantly worse" in said
    less = adjusted_conclusion(summarise(list(measured(grid(10), gain=-0.02))))
    assert ": focal, cyclical focal, significantly (" in less
    few = adjusted_conclusion(summarise(list(measured(grid(3)))))
    assert "nothing can be concluded; 3 seeds are too few" in few
    assert adjusted_conclusion(summarise(list(grid(10)))) == ""
    own = summarise([r for r in measured(grid(10)) if r.loss["name"] != "ce"])
    assert own.adjusted[0].loss == "focal, post-hoc adjusted"


def test_folds_are_corrected_for_and_said_to_be():
    lines = explanations(summarise(list(grid(3, folds=5))))
    assert any("n_test/n_train = 0.758. Reference: Nadeau and Bengio 2003" in line for line in lines)
    assert any("p: Student's t with this variance" in line for line in lines)
    assert not any("Too few seeds" in line for line in lines)


def test_too_few_seeds_conclude_nothing():
    summary = summarise(list(grid(6)), "ce")
    assert conclusions(summary) == ["Nothing can be concluded: 6 seeds are too few, 2 comparisons need 7 or more."]
    assert {row.comparison.verdict for row in summary.rows if row.comparison} == {"too few seeds"}


def test_a_loss_with_fewer_seeds_is_named():
    records = [r for r in grid(8) if r.loss["name"] != "focal" or r.seed < 5]
    said = conclusions(summarise(records))
    assert said[0].startswith("focal: nothing can be concluded; 5 seeds are too few")
    assert said[1].startswith("cyclical focal: significantly better")


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
        "fewer than 7 seeds in the primary metric, or 10 in the others",
    ):
        assert words in text


def test_differences_that_average_to_zero_are_not_equal_runs():
    moved = {seed: (-1) ** seed / 100 for seed in range(8)}
    records = [record(CROSS_ENTROPY, seed, 0.8) for seed in moved]
    unequal = [record(FOCAL, seed, 0.8 + by) for seed, by in moved.items()]
    assert "the differences average to zero" in conclusions(summarise([*records, *unequal]))[0]
    equal = [record(FOCAL, seed, 0.8) for seed in moved]
    assert "the runs are equal" in conclusions(summarise([*records, *equal]))[0]


def test_fewer_pairs_than_seeds_are_noted():
    said = conclusions(summarise([r for r in grid(9) if r.loss["name"] != "focal" or r.seed < 8]))
    assert "8 seeds of both" in said[0]
    assert "of both" not in said[1]


def test_explanations_name_the_sources_of_variation():
    shared = [replace(r, recipe=r.recipe | {"source": "cifar10"}) for r in grid(2)]
    assert any("All seeds share one test set" in line for line in explanations(summarise(shared)))
    assert any("Each seed draws its own split" in line for line in explanations(summarise(list(grid(2)))))


def test_explanations_name_the_tuning_budget():
    tuned = [replace(r, loss=r.loss | {"trials": 6}) for r in grid(2)]
    assert "Tuned: settings chosen on validation data, for each seed, from 6 trials per loss." in explanations(
        summarise(tuned)
    )
    shared = [replace(r, recipe=r.recipe | {"source": "cifar10"}) for r in tuned]
    assert any("once for all seeds" in line for line in explanations(summarise(shared)))
    assert not any("Tuned" in line for line in explanations(summarise(list(grid(2)))))


def test_weight_of_one_sample_of_a_rare_class():
    rare = [replace(r, test_counts=[50, 46, 4], recipe=r.recipe | {"test_per_class": 0}) for r in grid(2)]
    said = "The rarest class has 4 test samples; each is 8.3 points of balanced accuracy."
    assert said in explanations(summarise(rare))


def test_many_classes_are_described_by_their_extremes():
    counts, names = list(range(1, 41)), [f"bird {c}" for c in range(40)]
    many = [replace(r, train_counts=counts, per_class=[0.5] * 40, classes=names) for r in grid(2)]
    assert "40 classes, from bird 39 (40) to bird 0 (1)." in "\n".join(explanations(summarise(many)))


def test_records_without_names_and_sizes():
    text = "\n".join(explanations(summarise([replace(r, classes=[], test_counts=[]) for r in grid(2)])))
    assert "Training samples per class: 0: 100, 1: 30, 2: 2." in text
    assert "; samples:" not in text


def test_conclusions_over_data_sets():
    said = ranking_conclusions(ranking(summaries(group_experiments(list(data_sets(12))))))
    assert said[0].startswith(
        "Over 12 data sets the losses' ranks differ significantly (Friedman, p <0.001): cyclical focal (1.00)"
    )
    assert (
        "cyclical focal: ahead of cross-entropy on 12 data sets (significantly on 12), tied on 0, behind on 0"
        in said[1]
    )


def test_few_data_sets_conclude_nothing():
    said = ranking_conclusions(ranking(summaries(group_experiments(list(data_sets(3))))))
    assert said[0].startswith("3 data sets are too few to conclude anything")


def test_too_few_seeds_on_every_data_set():
    said = ranking_conclusions(ranking(summaries(group_experiments(list(data_sets(6, seeds=4))))))
    assert "with too few seeds for a significant difference on any" in said[1]
    assert "significantly on" not in said[1]
