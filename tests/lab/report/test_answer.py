"""Promise: a report begins with the answer, what voids it first, and claims no more than the statistics."""

from dataclasses import replace

import numpy as np
import pytest

from cyclofocal.lab.commands.output import print_comparison
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY, CYCLICAL, FOCAL, LOGIT_ADJUSTED
from cyclofocal.lab.report.answer import answer, answer_over, recommended
from cyclofocal.lab.report.experiment import group_experiments
from cyclofocal.lab.report.export import markdown_report
from cyclofocal.lab.report.html import page
from cyclofocal.lab.report.ranking import ranking
from cyclofocal.lab.report.summary import summaries, summarise
from evidence import binary, data_sets, measured, record


def runs(gains, seeds=10, spread=0.001, losses=(FOCAL, CYCLICAL)):
    """Runs of cross-entropy at about 80 %, and of the losses, better by these gains with this spread."""
    rng = np.random.default_rng(0)
    for seed in range(seeds):
        base = 0.8 + 0.01 * rng.random()
        yield record(CROSS_ENTROPY, seed, base)
        for loss, gain in zip(losses, gains, strict=True):
            yield record(loss, seed, base + gain + spread * float(rng.normal()))


def said(records, **options):
    """The answer without its hint at losses that were not compared."""
    return [line for line in answer(summarise(list(records), **options)) if not line.startswith("Not compared")]


def test_one_clear_winner_is_named_with_its_difference():
    (line,) = said(runs((0.01, 0.05)))
    assert line.startswith(
        "Use cyclical focal: its balanced accuracy is higher than that of cross-entropy (+5.0 points [+4."
    )
    assert line.endswith("p 0.004).")
    assert recommended(summarise(list(runs((0.01, 0.05))))) == "cyclical"


def test_winners_with_overlapping_intervals_are_a_group():
    (line,) = said(runs((0.05, 0.051), spread=0.01))
    assert line.startswith("Use cyclical focal or focal: +") or line.startswith("Use focal or cyclical focal: +")
    assert "points of balanced accuracy against cross-entropy. Their order is open" in line
    assert "the intervals overlap, and only differences to cross-entropy are tested" in line


def test_a_winner_within_the_margin_is_said_to_be():
    (line,) = said(runs((0.0, 0.002), spread=0.0001))
    assert line.startswith("Use cyclical focal")
    assert line.endswith(", though within a margin of 0.5 points.")


def test_equivalent_losses_make_no_difference():
    (line,) = said(runs((0.0, 0.0)))
    assert line == (
        "The loss makes no difference in balanced accuracy: focal and cyclical focal are equivalent to cross-entropy,"
        " within a margin of 0.5 points."
    )


def test_an_open_difference_names_the_seeds_that_settle_it():
    records = [record(CROSS_ENTROPY, seed, 0.8) for seed in range(10)]
    records += [record(FOCAL, seed, 0.8 + gain) for seed, gain in enumerate(np.tile([0.03, -0.01], 5).tolist())]
    keep, settle = said(records)
    assert keep == "Keep cross-entropy: no other loss is significantly better in balanced accuracy."
    assert settle.startswith("Closest to being better: focal (+1.0 points [-0.5, +2.5], p 0.")
    needed = summarise(records).compared(summarise(records).primary)[0].needed
    assert settle.endswith(f"about {needed} seeds would be needed to detect a difference of this size.")
    assert recommended(summarise(records)) == "ce"


def test_too_few_seeds_come_first_and_nothing_is_recommended():
    (line,) = said(runs((0.05, 0.06), seeds=3))
    assert line == "Nothing can be concluded: 3 seeds are too few, 2 comparisons need 7 or more."
    unfinished = [
        record for record in runs((0.05, 0.06), seeds=3) if (record.loss["name"], record.seed) != ("focal", 2)
    ]
    assert said(unfinished) == [line]  # the most seeds of a loss are named


def test_the_reference_is_used_where_all_others_are_worse():
    (line,) = said(runs((-0.02, -0.05)))
    assert (
        line
        == "Use cross-entropy: every other loss is significantly worse in balanced accuracy (by 2.0 points or more)."
    )


def test_some_worse_and_some_equivalent_losses_are_told_apart():
    (line,) = said(runs((0.0, -0.05)))
    assert line == (
        "Keep cross-entropy: no other loss is significantly better in balanced accuracy. Equivalent, within a margin of"
        " 0.5 points: focal. Significantly worse: cyclical focal."
    )


def test_lower_is_better_where_it_is():
    records = [record(CROSS_ENTROPY, seed, 0.8, nll=0.5 + seed / 100) for seed in range(8)]
    records += [record(FOCAL, seed, 0.8, nll=0.4 + seed / 100 + seed**2 / 1e4) for seed in range(8)]
    (line,) = said(records, metric="nll")
    assert line.startswith("Use focal: its negative log-likelihood is lower than that of cross-entropy (-0.09")


@pytest.mark.parametrize(
    ("gains", "adjustment", "words"),
    [
        (
            (0.0, 0.0),
            0.04,
            "What matters more than the loss: adjusting the logits of cross-entropy after training reach",
        ),
        ((0.0, 0.05), 0.04, "Most of this needs no other loss: adjusting the logits of cross-entropy after training"),
        ((0.0, 0.05), 0.02, "Without another loss: adjusting the logits of cross-entropy after training reaches"),
        ((0.0, 0.05), -0.02, ""),
    ],
)
def test_the_adjustment_after_training_is_weighed(gains, adjustment, words):
    found = [line for line in said(measured(runs(gains), gain=adjustment)) if "after training" in line]
    assert bool(found) == bool(words)
    if words:
        assert found[0].startswith(words)
        beaten = gains[1] > adjustment
        assert ("No loss is significantly better than that." in found[0]) != beaten
        assert ("Significantly better than that: cyclical focal." in found[0]) == beaten


def test_the_threshold_is_weighed_against_the_loss():
    (*_, line) = said(binary(runs((0.01, 0.03)), gain=0.1))
    assert line.startswith(
        "What matters more than the loss: the threshold. Chosen on validation data, it gains 10.0 points of balanced"
        " accuracy with any loss (from 80."
    )
    assert "at such thresholds the losses differ from cross-entropy by 1.0 to 3.0 points." in line
    assert not any("adjusting the logits" in line for line in said(binary(runs((0.01, 0.03)))))


def test_a_loss_that_moves_the_threshold_itself_gains_less():
    records = [
        replace(r, metrics=r.metrics | {"tuned_balanced_accuracy": 0.9 + 0.01 * (r.loss["name"] == "focal")})
        for r in binary(runs((0.1, 0.0)))
    ]
    (*_, line) = said(records)
    assert "it gains 9.5 points of balanced accuracy with cross-entropy (from 80.5 to 90.0 %), 0.5 to 9.5 over" in line
    assert line.endswith("differ from cross-entropy by 0.0 to 1.0 points.")


@pytest.mark.parametrize(("gain", "spread"), [(0.02, 0.0), (-0.1, 0.0), (0.1, 0.5)])
def test_a_small_or_unsure_gain_of_the_threshold_is_not_named(gain, spread):
    assert not any("the threshold" in line for line in said(binary(runs((0.01, 0.03)), gain, spread)))


def test_thresholds_are_named_with_too_few_seeds_as_well():
    few, line = said(binary(runs((0.01, 0.03), seeds=3)))
    assert few.startswith("Nothing can be concluded")
    assert line.startswith("What matters more than the loss: the threshold.")


def test_thresholds_over_data_sets_are_counted():
    records = list(binary(data_sets(6)))
    found = summaries(group_experiments(records))
    (line,) = [line for line in answer_over(found, ranking(found)) if "threshold" in line]
    assert line.startswith("On 6 of 6 experiments of two classes, a threshold chosen on validation data gains more")
    assert "(median gain 10.0 points, median of the largest difference 1." in line
    assert not any("threshold" in line for line in answer_over(summaries(group_experiments(list(data_sets(6)))), None))


def test_class_counts_are_named_where_they_decide():
    found = said(runs((0.0, 0.05), losses=(FOCAL, LOGIT_ADJUSTED)))
    assert found[1] == (
        "Every loss that is significantly better uses the class counts, and none of those without them is."
    )
    assert len(said(runs((0.05, 0.05), losses=(FOCAL, LOGIT_ADJUSTED)))) == 1


def test_losses_that_use_the_class_counts_are_missed():
    (_, missed) = answer(summarise(list(runs((0.0, 0.0)))))
    assert missed.startswith("Not compared: losses that use the class counts (weighted, logit-adjusted), though")
    assert "50 times the samples of the smallest" in missed
    even = [replace(r, train_counts=[50, 40, 30]) for r in runs((0.0, 0.0))]
    assert len(answer(summarise(even))) == 1


def test_what_voids_the_answer_comes_first():
    late = [
        replace(r, epochs=[row | {"train_accuracy": row["epoch"] / 4} for row in r.epochs]) for r in runs((0.0, 0.05))
    ]
    assert said(late)[0] == (
        "Not converged: raise --epochs."
        " At the end of the runs every loss still gained 25.0 points of training accuracy."
    )
    assert said(late)[1].startswith("Use cyclical focal")
    same = [replace(r, per_class=[1.0, 0.0, 0.0]) if r.loss["name"] == "focal" else r for r in runs((0.0, 0.05))]
    assert said(same)[0].startswith("Models that predict a single class for every test sample: focal in 10 of 10 runs.")


def test_without_the_reference_there_is_no_verdict():
    alone = [r for r in runs((0.0, 0.05)) if r.loss["name"] != "ce"]
    assert answer(summarise(alone, "ce"))[0] == "No loss can be compared with the reference: there is no verdict."


def test_terminal_markdown_and_page_begin_alike(capsys):
    records = list(measured(runs((0.0, 0.05)), gain=0.02))
    summary = summarise(records)
    lines = answer(summary)
    print_comparison(records)
    assert capsys.readouterr().out.splitlines()[1 : 1 + len(lines)] == lines
    assert markdown_report([summary]).splitlines()[2 : 2 + len(lines)] == [f"* {line}" for line in lines]
    html = page([summary])
    places = [html.index(line.partition(" (")[0]) for line in lines]
    assert places == sorted(places)
    assert max(places) < html.index("<table")


def test_an_answer_over_data_sets_names_the_best_by_rank():
    def over(records):
        found = summaries(group_experiments(list(records)))
        return answer_over(found, ranking(found))

    best, counted = over(data_sets(12))
    assert best.startswith("Use cyclical focal: over 12 data sets its mean rank in balanced accuracy, 1.00, is")
    assert counted == (
        "Against cross-entropy, experiment by experiment, significantly better: cyclical focal on 12; significantly"
        " worse: none."
    )
    (level, *_) = over(data_sets(12, gain=0.0))
    assert level.startswith(
        "The loss makes no significant difference over 12 data sets, by ranks in balanced accuracy ("
    )
    few, *_ = over(data_sets(6, seeds=3))
    assert few == "On 6 of 6 experiments nothing can be concluded: there are too few seeds."
    assert over(data_sets(2))[0].startswith("2 data sets are too few to conclude anything over data sets")


@pytest.mark.parametrize(("file", "loss"), [("", "ce"), ("my_loss.py:mine", "ce=my_loss.py:mine")])
def test_the_command_to_train_spells_the_loss(file, loss, capsys):
    records = [replace(run, loss=run.loss | {"file": file}) for run in runs((0.0, -0.05))]
    print_comparison(records, train="cyclofocal train digits")
    assert f"Train the model: cyclofocal train digits --loss {loss}\n" in capsys.readouterr().out
