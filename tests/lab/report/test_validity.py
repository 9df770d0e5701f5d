"""Promise: runs that still improve, and models that predict one class for all, are found and told apart."""

from dataclasses import replace

import pytest

from cyclofocal.lab.report.answer import answer
from cyclofocal.lab.report.explanations import explanations
from cyclofocal.lab.report.findings import single_class_sentences
from cyclofocal.lab.report.summary import primary_metric, summarise
from cyclofocal.lab.report.validity import late_gains, single_classes
from evidence import binary, grid

PRIMARY = primary_metric("balanced_accuracy")


def with_curve(records, curve, key="validation_balanced_accuracy", loss="focal"):
    """The records, with these values by epoch for one loss and a flat curve for the others."""
    for found in records:
        values = curve if found.loss["name"] == loss else [curve[-1]] * len(curve)
        rows = [{"epoch": e, "eta": None, "train_accuracy": 0.9, key: value} for e, value in enumerate(values)]
        yield replace(found, epochs=rows, epoch_seconds=[])


def gains(records):
    return late_gains(summarise(list(records)).experiment)


@pytest.mark.parametrize(
    ("curve", "points"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.70, 0.70, 0.73, 0.73], 3.0),  # a fifth of 10 epochs is 2
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.70, 0.70, 0.705, 0.705], None),  # half a point is no unfinished training
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.75, 0.70, 0.70], None),  # it falls
        ([0.5] * 30 + [0.6] * 10, None),  # flat for 10 epochs: the window is 5 of them and not a fifth of 40
        ([0.5, 0.6], 10.0),
        ([0.5], None),
    ],
)
def test_a_late_gain_is_found_in_the_last_fifth_of_the_epochs(curve, points):
    found = gains(with_curve(grid(4), curve))
    assert [(gain.loss, gain.points) for gain in found] == ([("focal", pytest.approx(points))] if points else [])


def test_a_gain_that_varies_over_the_seeds_is_none():
    def moved(by):
        return [r for r in with_curve(grid(4), [0.5, 0.5, 0.5, 0.5, 0.5 + by]) if r.loss["name"] == "focal"]

    steady = [moved(0.02)[seed] for seed in range(4)]
    assert [gain.points for gain in gains(steady)] == [pytest.approx(2.0)]
    assert not gains([moved(by)[seed] for seed, by in enumerate((0.2, -0.2, 0.2, -0.12))])  # 2 points as well


def test_early_stopping_converged_unless_the_end_is_the_best():
    def stopping(losses, patience, planned=10):
        return gains(
            replace(found, recipe=found.recipe | {"early_stopping": patience, "epochs": planned})
            for found in with_curve(grid(4), losses, "validation_loss")
        )

    falling = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3]
    assert [(gain.key, gain.points) for gain in stopping(falling, 3)] == [("validation_loss", pytest.approx(25.0))]
    assert not stopping([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.4, 0.41], 3)  # the best is before the last fifth
    assert not stopping([*falling[:-2], 0.399, 0.398], 3)  # half a per cent
    assert not stopping([1.0, 0.3, 0.5, 0.6], 2)  # it stopped by itself
    sentence = answer(
        summarise(
            [
                replace(found, recipe=found.recipe | {"early_stopping": 3})
                for found in with_curve(grid(4), falling, "validation_loss")
            ]
        )
    )
    assert any(
        "Not converged: raise --epochs" in line and "lowered the validation loss by" in line for line in sentence
    )


def test_validation_data_decide_before_the_training_accuracy():
    records = list(with_curve(grid(3), [0.5, 0.5, 0.5, 0.5, 0.58], "train_accuracy"))
    assert [gain.key for gain in gains(records)] == ["train_accuracy"]
    assert not gains(with_curve(grid(3), [0.5, 0.5, 0.5, 0.5, 0.54], "train_accuracy"))  # 5 points are needed
    flat = [replace(r, epochs=[row | {"validation_accuracy": 0.9} for row in r.epochs]) for r in records]
    assert not gains(flat)


@pytest.mark.parametrize(
    ("nll", "counts", "trained", "adjusted", "cause"),
    [
        (0.40, [50, 46, 4], 0.9, None, "prior"),  # the shares alone: 0.50 * 0.28 + 0.46 * 1.48 + 0.04 * 4.19 = 0.99
        (0.96, [50, 46, 4], 0.9, None, "unknown"),
        (0.40, [], 0.9, None, "unknown"),
        (0.96, [50, 46, 4], 100 / 132, None, "not trained"),  # of the training samples 100, 30 and 2
        (0.96, [50, 46, 4], 100 / 132, 0.34, "not trained"),  # the adjusted model predicts one class too: 1 / 3
        (0.96, [50, 46, 4], 100 / 132, 0.70, "prior"),
    ],
)
def test_causes_of_one_class_for_all_are_told_apart(nll, counts, trained, adjusted, cause):
    records = [
        replace(
            r,
            per_class=[1.0, 0.0, 0.0],
            test_counts=counts,
            metrics=r.metrics | {"nll": nll},
            adjusted={} if adjusted is None else {"balanced_accuracy": adjusted},
            epochs=[row | {"train_accuracy": trained} for row in r.epochs],
        )
        for r in grid(3)
    ]
    found = single_classes(summarise(records).experiment)
    assert {(entry.cause, entry.runs, entry.of, entry.voids(PRIMARY)) for entry in found} == {(cause, 3, 3, True)}
    assert {entry.voids(primary_metric("nll")) for entry in found} == {cause != "prior"}
    (said,) = single_class_sentences(found)
    assert "focal in 3 of 3 runs" in said
    assert ("raise --epochs" in said) == (cause == "not trained")
    assert ("70.0 %" in said) == (adjusted == 0.70)


@pytest.mark.parametrize(
    ("tuned", "trained", "cause"), [(0.82, 0.91, "threshold"), (0.52, 0.91, "not trained"), (0.52, 0.99, "unknown")]
)
def test_thresholds_tell_an_untrained_model_from_a_hidden_one(tuned, trained, cause):
    records = [
        replace(
            r,
            per_class=[1.0, 0.0],
            metrics=r.metrics | {"tuned_balanced_accuracy": tuned, "nll": 0.9},
            adjusted={},
            epochs=[row | {"train_accuracy": trained} for row in r.epochs],
        )
        for r in binary(grid(8))
    ]
    summary = summarise(records)
    found = single_classes(summary.experiment)
    assert {entry.cause for entry in found} == {cause}
    assert [entry.voids(PRIMARY) for entry in found] == [True] * 3
    assert [entry.voids(summary.primary) for entry in found] == [cause != "threshold"] * 3  # of AUROC
    (said,) = single_class_sentences(found)
    assert (f"{100 * tuned:.1f} %" in said) == (cause != "unknown")
    assert any(said in line for line in (answer(summary) if cause != "threshold" else explanations(summary)))


def test_a_few_runs_of_one_class_are_a_remark():
    records = [
        replace(r, per_class=[1.0, 0.0, 0.0]) if (r.loss["name"], r.seed) == ("focal", 4) else r for r in grid(10)
    ]
    summary = summarise(records)
    (found,) = single_classes(summary.experiment)
    assert not found.voids(PRIMARY)
    said = "a single class for every test sample: focal in 1 of 10 runs"
    assert any(said in line for line in explanations(summary))
    assert not any(said in line for line in answer(summary))
