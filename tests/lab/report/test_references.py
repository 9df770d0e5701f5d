"""References are compared with the reference loss by seed, in rows apart, and change nothing about the losses."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from cyclofocal.lab.commands.output import print_comparison
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY, CYCLICAL, ESTIMATORS, FOCAL, LIGHTGBM, MAJORITY
from cyclofocal.lab.report.answer import answer, answer_over
from cyclofocal.lab.report.experiment import group_experiments
from cyclofocal.lab.report.export import csv_report, latex_report, markdown_report
from cyclofocal.lab.report.html import page
from cyclofocal.lab.report.ranking import ranking
from cyclofocal.lab.report.result_tables import means_table, metric_table, overview_table
from cyclofocal.lab.report.summary import summaries, summarise
from evidence import data_sets, grid, measured, record

HEADING = "references, not losses"


def fitted(loss, seed, accuracy, **details):
    """Record of a reference."""
    return replace(record(loss, seed, accuracy, **details), epochs=[], epoch_seconds=[], weights="")


def beside(records, gains=(-0.3, 0.1), loss="ce"):
    """Records, and at each seed the majority class and LightGBM with these gains over a loss."""
    rng = np.random.default_rng(1)
    for found in records:
        yield found
        if found.loss["name"] == loss:
            for entry, gain in zip((MAJORITY, LIGHTGBM), gains, strict=True):
                accuracy = found.metrics["accuracy"] + gain + 0.001 * rng.normal()
                yield fitted(entry, found.seed, accuracy, fold=found.recipe["fold"])


def both(seeds=10, **how):
    """Summaries of the same losses without and with references."""
    losses = list(grid(seeds))
    return summarise(losses), summarise(list(beside(losses, **how)))


def test_losses_are_summarised_as_without_references():
    without, found = both()
    assert found.rows == without.rows
    assert found.notes == without.notes
    assert (found.adjusted, found.reference, found.seeds) == (without.adjusted, without.reference, without.seeds)
    assert answer(without) == answer(summarise(list(beside(grid(10), gains=(-0.3, -0.1)))))
    assert without.references == ()


def test_references_are_paired_by_seed_and_corrected_apart():
    records = list(beside(grid(10)))
    found = summarise(records)
    of = {(run.loss["name"], run.seed): run.metrics["accuracy"] for run in records}
    for name in ("majority", "lightgbm"):
        (row,) = (row for row in found.references if row.name == name and row.metric == found.primary)
        expected = [100 * (of[name, seed] - of["ce", seed]) for seed in range(10)]
        assert row.comparison.per_seed == pytest.approx(expected)
        assert row.comparison.estimate.mean == pytest.approx(np.mean(expected))
        low, high = row.comparison.estimate.interval
        assert low < np.mean(expected) < high
        assert row.comparison.family_size == 2
        assert row.comparison.corrected_p == pytest.approx(2 * 2 / 2**10)
    shuffled = summarise(records[::-1])
    assert {(r.name, r.metric): r.comparison.per_seed for r in shuffled.references} == {
        (r.name, r.metric): r.comparison.per_seed for r in found.references
    }


def test_other_seeds_are_paired_where_a_reference_lacks_one():
    records = [r for r in beside(grid(10)) if (r.loss["name"], r.seed) != ("lightgbm", 4)]
    found = summarise(records)
    (row,) = (row for row in found.references if row.name == "lightgbm" and row.metric == found.primary)
    assert row.comparison.estimate.n == 9


def test_rows_stand_apart_in_every_format(capsys, tmp_path):
    _, found = both()
    table = metric_table(found, found.primary)
    assert [row[0].text for row in table.apart] == ["majority class", "LightGBM"]
    assert not {"majority class", "LightGBM"} & {row[0].text for row in table.rows}
    assert [row[0].text for row in means_table(found).apart] == ["majority class", "LightGBM"]
    made = [markdown_report([found]), latex_report([found]), page([found])]
    print_comparison(list(beside(grid(10))), everything=True)
    for text in (*made, capsys.readouterr().out):
        assert text.index("cyclical focal") < text.index(HEADING) < text.index("LightGBM", text.index(HEADING))
    assert "p is Holm-corrected over the references alone" in made[0]
    lines = list(csv.DictReader(io.StringIO(csv_report([found]))))
    assert {line["loss"] for line in lines if line["role"] == "reference"} == {"majority", "lightgbm"}
    assert {line["loss"] for line in lines if line["role"] == "primary"} == {"ce", "focal", "cyclical"}


def test_a_page_without_references_has_no_heading_of_them():
    without, _ = both()
    assert HEADING not in page([without]) + markdown_report([without]) + latex_report([without])


def test_better_reference_is_the_first_sentence_of_the_answer():
    _, found = both(gains=(-0.3, 0.1))
    first = answer(found)[0]
    assert first.startswith("A loss is not what you need: in balanced accuracy LightGBM reaches ")
    best = max(found.of_metric(found.primary), key=lambda row: row.estimate.mean)
    assert f" %, against {best.estimate.mean:.1f} % of {best.loss}, the best loss (+" in first
    assert answer(found)[1:] == answer(both()[0])


@pytest.mark.parametrize("gain", [0.0, 0.01, -0.1])
def test_reference_that_does_not_beat_the_best_loss_is_not_named(gain):
    _, found = both(gains=(-0.3, gain))  # cyclical gains 0.01 and a bit
    assert not any("not what you need" in line for line in answer(found))


def test_reference_whose_interval_holds_0_is_not_named():
    rng = np.random.default_rng(0)
    records = [record(CROSS_ENTROPY, seed, 0.8) for seed in range(10)]
    records += [record(FOCAL, seed, 0.7) for seed in range(10)]
    records += [fitted(LIGHTGBM, seed, 0.81 + 0.1 * rng.normal()) for seed in range(10)]
    assert not any("not what you need" in line for line in answer(summarise(records)))


def test_lower_is_better_where_the_metric_says_so():
    records = list(grid(10))
    records += [fitted(LIGHTGBM, seed, 0.1, nll=0.3 + seed / 1000) for seed in range(10)]
    first = answer(summarise(records, metric="nll"))[0]
    assert first.startswith("A loss is not what you need: in negative log-likelihood LightGBM reaches 0.30")
    assert not any("not what you need" in line for line in answer(summarise(records)))


def test_ranks_and_tallies_are_of_losses_alone():
    records = list(data_sets(8))
    found = summaries(group_experiments(records))
    more = []
    for run in records:
        more.append(run)
        if run.loss["name"] == "ce":
            accuracy = run.metrics["accuracy"] + 0.15
            more.append(replace(fitted(LIGHTGBM, run.seed, min(accuracy, 1.0)), recipe=run.recipe))
    with_references = summaries(group_experiments(more))
    assert ranking(with_references) == ranking(found)
    lines = answer_over(with_references, ranking(with_references))
    assert any(
        line.startswith("A loss is not what you need on ") and "better than the best is LightGBM on" in line
        for line in lines
    )
    headings = [column.heading for column in overview_table(with_references).columns]
    assert headings[-1] == "reference: LightGBM"
    assert headings[:-1] == [column.heading for column in overview_table(found).columns]


def test_references_without_a_loss_are_compared_like_losses():
    records = [fitted(loss, seed, 0.5 + 0.1 * place + seed / 100) for seed in range(8) for place, loss in SOME]
    found = summarise(records)
    assert (found.references, found.reference) == ((), "majority class")
    assert {row.name for row in found.rows} == {"majority", "lightgbm"}
    for made in (page([found]), markdown_report([found])):
        assert HEADING not in made


SOME = ((0, MAJORITY), (1, LIGHTGBM))


def test_versions_and_devices_of_references_are_no_inconsistency():
    losses = [replace(run, device="NVIDIA H200") for run in grid(10)]
    versions = {"torch": "2.14", "lightgbm": "4.7.0"}
    records = [*losses, *(replace(fitted(LIGHTGBM, seed, 0.8), versions=versions) for seed in range(10))]
    records += [fitted(MAJORITY, seed, 0.5) for seed in range(10)]
    assert summarise(records).notes == summarise(losses).notes
    mixed = [replace(r, versions=versions | {"lightgbm": "4.0"}) if r.seed and r.is_reference else r for r in records]
    assert "Runs of different versions of lightgbm: " in " ".join(summarise(mixed).notes)
    shown = page([summarise(records)])
    assert "4.7.0" in shown
    assert "not recorded" not in shown


def test_order_of_references_is_that_of_the_command():
    records = [*grid(8), *(fitted(loss, seed, 0.7) for seed in range(8) for loss in reversed(ESTIMATORS))]
    assert [*summarise(records).experiment.references] == [loss.name for loss in ESTIMATORS]


def test_references_stand_next_to_adjusted_logits():
    found = summarise(list(beside(measured(grid(10)))))
    assert found.adjusted
    assert [row.name for row in found.against_adjusted] == ["focal", CYCLICAL.name]
