"""Promise: summaries average folds, pair seeds, and correct the primary metric as a family of its own."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy import stats

from cyclofocal.lab.data.config import FolderData
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY, CYCLICAL, FOCAL
from cyclofocal.lab.report.experiment import group_experiments
from cyclofocal.lab.report.explanations import explanations
from cyclofocal.lab.report.findings import conclusions
from cyclofocal.lab.report.statistics import holm
from cyclofocal.lab.report.summary import common_primary, summaries, summarise, threshold_gains
from evidence import binary, grid, measured, record


def row_of(summary, loss, metric="balanced_accuracy"):
    (row,) = [row for row in summary.rows if row.metric.key == metric and row.name == loss]
    return row


def test_differences_are_paired_by_seed_whatever_the_order():
    records = list(grid(10))
    by_seed = {(r.loss["name"], r.seed): r.metrics["accuracy"] for r in records}
    expected = [100 * (by_seed["cyclical", seed] - by_seed["ce", seed]) for seed in range(10)]
    for summary in (summarise(records), summarise(records[::-1])):
        comparison = row_of(summary, "cyclical").comparison
        assert comparison.per_seed == pytest.approx(expected)
        assert comparison.difference.estimate.mean == pytest.approx(np.mean(expected))


def test_a_seed_that_one_loss_lacks_makes_no_pair():
    records = [r for r in grid(10) if not (r.seed == 3 and r.loss["name"] == "ce")]
    for row in summarise(records, "ce").rows:
        if row.comparison:
            assert (row.comparison.difference.estimate.n, row.estimate.n) == (9, 10)


def test_folds_of_a_seed_are_one_value():
    records = list(grid(4, folds=5))
    summary = summarise(records)
    row = row_of(summary, "focal")
    of_seed = [np.mean([100 * r.metrics["accuracy"] for r in records if r.loss["name"] == "focal" and r.seed == s])
               for s in range(4)]  # fmt: skip
    assert row.estimate.n == row.comparison.difference.estimate.n == 4
    assert row.estimate.mean == pytest.approx(np.mean(of_seed))
    assert summary.folds == 5


def test_a_missing_fold_is_left_out_of_its_pair_and_noted():
    records = [
        r for r in grid(4, folds=5) if not (r.loss["name"] == "cyclical" and (r.seed, r.recipe["fold"]) == (2, 1))
    ]
    summary = summarise(records)
    per_seed = row_of(summary, "cyclical").comparison.per_seed
    assert all(1 <= gain <= 1.1 for gain in per_seed)  # an unpaired mean of folds would be off by up to 1 point
    assert any("cyclical focal: no run of seed.fold 2.1" in note for note in summary.notes)


def test_primary_and_secondary_metrics_are_two_families():
    summary = summarise(list(grid(10)), metric="nll")
    primary = [row.comparison for row in summary.rows if row.metric.key == "nll" and row.comparison]
    others = [row.comparison for row in summary.rows if row.metric.key != "nll" and row.comparison]
    for family in (primary, others):
        assert [comparison.corrected_p for comparison in family] == holm(
            [comparison.difference.p for comparison in family]
        )
        assert {comparison.family_size for comparison in family} == {len(family)}
    assert (len(primary), len(others)) == (2, 16)
    assert summary.metrics[0].key == "nll"


def test_further_metrics_are_a_family_apart():
    summary = summarise(list(measured(grid(10))))
    sizes = {row.metric.key: row.comparison.family_size for row in summary.rows if row.comparison}
    assert (sizes["balanced_accuracy"], sizes["nll"], sizes["mcc"]) == (2, 16, 6)
    counted = [summary.comparisons(), summary.comparisons(secondary=True), summary.comparisons(further=True)]
    assert counted == [2, 16, 6]
    assert {row.comparison.equivalence_p for row in summary.rows[3:] if row.comparison} == {None}


def test_folds_have_the_interval_and_p_of_nadeau_and_bengio():
    records = [r for r in grid(2, folds=5) if (r.loss["name"], r.seed, r.recipe["fold"]) != ("cyclical", 1, 4)]
    summary = summarise(records)
    number = {(r.loss["name"], r.seed, r.recipe["fold"]): 100 * r.metrics["accuracy"] for r in records}
    d = [number[key] - number["ce", *key[1:]] for key in number if key[0] == "cyclical"]
    ratio = 100 / 132  # test and training samples of the records
    error = (np.var(d, ddof=1) * (1 / len(d) + ratio)) ** 0.5
    found = row_of(summary, "cyclical").comparison
    half = stats.t.ppf(0.975, len(d) - 1) * error
    assert found.estimate.interval == pytest.approx((np.mean(d) - half, np.mean(d) + half))
    assert found.difference.p == pytest.approx(2 * stats.t.sf(np.mean(d) / error, len(d) - 1))
    assert (found.estimate.n, len(d)) == (2, 9)
    old = summarise([replace(r, test_counts=[], recipe=r.recipe | {"validation_fraction": 0.2}) for r in records])
    assert old.experiment.overlap == pytest.approx(0.2 / (0.8 * 0.8))


def test_time_is_relative_to_the_reference():
    assert summarise(list(grid(6))).time == pytest.approx({"ce": 1.0, "focal": 1.5, "cyclical": 1.5})


def test_a_group_without_classes_is_left_out_silently():
    summary = summarise(list(grid(10, few=None)), "ce")
    assert "few" not in [metric.key for metric in summary.metrics]
    assert not summary.notes


def test_equal_runs_are_no_difference():
    ties = [replace(r, loss=asdict(FOCAL)) for r in grid(10) if r.loss["name"] == "ce"]
    summary = summarise([*[r for r in grid(10) if r.loss["name"] == "ce"], *ties], "ce")
    primary = [found.verdict for found in summary.compared(summary.primary)]
    assert primary == ["equivalent"]
    assert {row.comparison.verdict for row in summary.rows[2:] if row.comparison} == {"not significant"}
    assert {row.comparison.corrected_p for row in summary.rows if row.comparison} == {1.0}
    assert "the runs are equal" in conclusions(summary)[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: replace(r, metrics={**r.metrics, "nll": float("nan")}), "negative log-likelihood of seed 4"),
        (lambda r: replace(r, metrics={**r.metrics, "few": None}), "few-shot accuracy of seed 4"),
        (lambda r: replace(r, versions={"torch": "2.13"}), "different versions of torch: 2.13, 2.14"),
        (lambda r: replace(r, device="NVIDIA H100"), "different devices: NVIDIA H100; cpu"),
        (lambda r: replace(r, system="macOS"), "different systems: Linux x86_64, some CPU; macOS"),
        (lambda r: replace(r, loss={**r.loss, "gamma_pos": 9.0}), "runs of different settings share this name"),
        (lambda r: replace(r, seed=3), "seed 3 twice; the first is used"),
    ],
)
def test_inconsistencies_are_noted_and_the_rest_is_summarised(change, said):
    records = [change(r) if (r.loss["name"], r.seed) == ("focal", 4) else r for r in grid(10)]
    summary = summarise(records)
    assert any(said in note for note in summary.notes)
    assert any(said in line for line in explanations(summary))
    assert row_of(summary, "cyclical").comparison.verdict == "significantly better"


def test_a_loss_that_never_cycled_is_named():
    short = [replace(r, epochs=[r.epochs[0], r.epochs[-1]]) for r in grid(3)]
    assert [row["eta"] for r in short if r.loss["name"] == "cyclical" for row in r.epochs] == [1.0] * 6
    said = "cyclical focal: eta is 1 in every epoch, so the focal phase was never reached; it takes 3 epochs or more."
    assert summarise(short).notes == (said,)
    assert summarise([replace(r, recipe=r.recipe | {"clock": "step"}) for r in short]).notes == ()
    assert summarise(list(grid(3))).notes == ()


def test_without_the_reference_there_are_means_and_no_verdicts():
    summary = summarise([r for r in grid(10) if r.loss["name"] != "ce"], "ce")
    assert not any(row.comparison for row in summary.rows)
    assert conclusions(summary) == []
    assert any("No run of the reference 'ce'" in note for note in summary.notes)


def test_old_records_have_the_defaults_of_later_fields():
    old = [
        replace(r, recipe={k: v for k, v in r.recipe.items() if k not in ("target", "folds", "fold")}) for r in grid(3)
    ]
    assert summarise([*old, *[r for r in grid(6) if r.seed >= 3]]).seeds == 6


def test_several_recipes_are_not_one_summary():
    other = [replace(r, recipe={**r.recipe, "epochs": 7}) for r in grid(2)]
    with pytest.raises(ValueError, match="2 experiments"):
        summarise([*grid(2), *other])
    with pytest.raises(ValueError, match="metric is 'acc'; it must be one of accuracy"):
        summarise(list(grid(2)), metric="acc")


def test_losses_of_equal_title_are_distinguished():
    twin = replace(CYCLICAL, name="cyclical:gamma_hc=2.0")
    records = [*grid(2), *[record(twin, seed, 0.8) for seed in range(2)]]
    titles = {row.loss for row in summarise(records).rows}
    assert {"cyclical focal (cyclical)", "cyclical focal (cyclical:gamma_hc=2.0)", "focal"} <= titles


def test_the_primary_metric_is_that_of_the_records():
    begun = [replace(r, primary_metric="nll") for r in grid(6)]
    assert summarise(begun).primary.key == "nll"
    assert not any("started with" in line for line in explanations(summarise(begun)))
    assert any("started with another primary metric, nll" in line for line in explanations(summarise(begun, "", "ece")))
    assert summarise([*begun[:3], *list(grid(6))[3:]]).primary.key == "balanced_accuracy"


def test_a_loss_edited_between_its_runs_is_two():
    mine = replace(FOCAL, name="mine", title="mine", file="mine.py:mine", digest="a" * 16)
    edited = replace(mine, digest="b" * 16)
    records = [*grid(6), *[record(loss, seed, 0.8) for loss in (mine, edited) for seed in range(6)]]
    titles = {row.loss for row in summarise(records).rows}
    assert {"mine, SHA-256 aaaaaa...", "mine, SHA-256 bbbbbb..."} <= titles


def test_cross_entropy_is_the_reference_tuned_or_not():
    tuned = replace(CROSS_ENTROPY, name="ce:tuned", title="cross-entropy, tuned")
    others = [r for r in grid(6) if r.loss["name"] != CROSS_ENTROPY.name]
    records = [*others, *[record(tuned, seed, 0.8) for seed in range(6)]]
    assert summarise(records).reference == tuned.title
    assert summarise([*records, *grid(6)]).reference == CROSS_ENTROPY.title


def test_without_cross_entropy_the_first_loss_is_the_reference():
    records = [r for r in grid(6) if r.loss["name"] != CROSS_ENTROPY.name]
    assert summarise(records).reference == FOCAL.title


def test_runs_with_another_number_of_classes_are_left_out():
    *records, last = grid(3)
    smaller = {"train_counts": [9, 9], "test_counts": [5, 5], "classes": ["a", "b"], "per_class": [0.5, 1.0]}
    summary = summarise([*records, replace(last, **smaller)])
    assert "Runs with another number of classes than the first run, left out: 1." in summary.notes
    assert len(summary.class_results) == 3
    assert {row.loss: row.estimate.n for row in summary.of_metric(summary.primary)}["cyclical focal"] == 2


def test_the_default_metric_of_two_classes_is_the_auroc():
    (two,) = summaries(group_experiments([replace(r, primary_metric="") for r in binary(grid(8))]))
    assert (two.primary.key, two.primary.title) == ("macro_auroc", "AUROC")
    assert summarise(list(grid(8))).primary.key == "balanced_accuracy"
    old = [replace(r, metrics=r.metrics | {"macro_auroc": None}, primary_metric="") for r in binary(grid(8))]
    assert summarise(old).primary.key == "balanced_accuracy"


def test_two_classes_lead_and_have_no_shot_groups():
    summary = summarise(list(binary(grid(8))))
    titles = [metric.title for metric in summary.main_metrics]
    assert titles[:4] == ["AUROC", "average precision of yes", "recall of yes", "precision of yes"]
    assert not any("shot" in metric.title for metric in summary.metrics)
    assert titles.index("F1 of yes at the chosen threshold") == titles.index("F1 of yes") + 1


def test_a_rarer_class_that_changes_between_seeds_has_no_name():
    records = [replace(r, train_counts=[50, 50 + (-1) ** r.seed]) for r in binary(grid(4))]
    assert summarise(records).main_metrics[1].title == "average precision of the rarer class"


def test_the_prior_does_not_change_the_order_of_two_classes():
    summary = summarise(list(binary(grid(8))))
    assert not summary.against_adjusted
    assert "macro_auroc" not in {row.metric.key for row in summary.adjusted}
    by_accuracy = summarise(list(binary(grid(8))), metric="balanced_accuracy")
    assert by_accuracy.against_adjusted


def test_mixed_experiments_have_one_metric_with_one_title():
    other = replace(digits(), name="other", title="other", data=FolderData("other"))
    multi = [replace(r, metrics=r.metrics | {"macro_auroc": 0.9}) for r in measured(grid(8, recipe=other))]
    found = summaries(group_experiments([*binary(grid(8)), *multi]))
    assert [summary.primary.title for summary in found] == ["AUROC", "macro AUROC"]
    assert common_primary(found).title == "macro AUROC"
    assert common_primary(found[:1]).title == "AUROC"


def test_the_gain_of_a_threshold_is_paired_by_run():
    records = list(binary(grid(8), gain=0.1))
    missing = [replace(r, metrics=r.metrics | {"tuned_balanced_accuracy": None}) if r.seed == 0 else r for r in records]
    for name, gain in threshold_gains(summarise(missing).experiment).items():
        assert gain.mean == pytest.approx(10), name
        assert gain.n == 7
    assert threshold_gains(summarise(list(grid(8))).experiment) == {}
