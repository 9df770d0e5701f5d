"""Stored logits give every number again, closed and open set, at any threshold, and damage is named."""

import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from cyclofocal.lab.commands.evaluate import evaluate as command
from cyclofocal.lab.commands.evaluate import shot_groups
from cyclofocal.lab.longtail import FOLLOWERS, OLTR, ShotGroups
from cyclofocal.lab.metrics import METRICS, metrics_with
from cyclofocal.lab.metrics import compute_metrics as closed
from cyclofocal.lab.oltr.evaluation import OPEN_METRICS, evaluate_file, evaluate_logits
from cyclofocal.lab.training.predictions import DamagedPredictionsError, Predictions, read, write

COUNTS = np.array([500, 100, 20, 3])
# two images of each class with their confidence in what is predicted, then two unknown ones
PREDICTED = [0, 0, 1, 0, 2, 0, 0, 3, 0, 1]
CONFIDENCE = [0.9, 0.4, 0.8, 0.7, 0.4, 0.6, 0.9, 0.6, 0.4, 0.7]
TARGET = np.array([0, 0, 1, 1, 2, 2, 3, 3, -1, -1])


def logits():
    p = np.empty((10, 4))
    for row, c, sure in zip(p, PREDICTED, CONFIDENCE, strict=True):
        row[:], row[c] = (1 - sure) / 3, sure
    return np.log(p).astype(np.float32)


@pytest.fixture
def predictions():
    return Predictions(logits(), TARGET, COUNTS, "a loss")


@pytest.fixture
def path(predictions, tmp_path):
    write(predictions, tmp_path / "run.npz")
    return tmp_path / "run.npz"


def run(*arguments):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})


def test_numbers_by_hand(predictions):
    found = evaluate_logits(predictions, threshold=0.5)
    numbers = found.numbers
    assert list(numbers) == [metric.key for metric in (*METRICS, *OPEN_METRICS)]
    assert (found.n_images, found.n_unknown, found.threshold, found.groups) == (8, 2, 0.5, OLTR)
    assert found.recall == [1.0, 0.5, 0.5, 0.5]
    assert (numbers["accuracy"], numbers["many"], numbers["medium"], numbers["few"]) == (5 / 8, 0.75, None, 0.5)
    # at 0.5 the second, the fifth and the first unknown image are rejected: 3 known are right, 3 wrong, 2 rejected
    assert (numbers["open_accuracy"], numbers["open_many"], numbers["open_few"]) == (3 / 8, 0.5, 0.25)
    assert numbers["unknown_rejected"] == 0.5
    assert numbers["f_oltr"] == pytest.approx(6 / (6 + 5 + 1))
    assert numbers["f_oltr_old"] == pytest.approx(6 / (6 + 3 + 1))
    # unknown at 0.4 and 0.7; of the known two are at 0.4, two at 0.6 and one at 0.7, the others above
    assert numbers["auroc"] == pytest.approx((6 + 2 * 0.5 + 3 + 0.5) / 16)
    assert numbers["fpr95"] == 1.0


def test_stored_logits_give_the_metrics_of_the_run(predictions, path):
    assert evaluate_file(path, 0.5) == evaluate_logits(predictions, 0.5)
    again = read(path)
    assert again.title == "a loss"
    assert np.array_equal(again.logits, predictions.logits)


def test_closed_numbers_are_the_labs_own(predictions):
    known = predictions.known
    expected = closed(predictions.logits[known], TARGET[known], COUNTS.tolist(), FOLLOWERS)
    found = evaluate_logits(predictions, groups=FOLLOWERS).numbers
    assert {name: found[name] for name in expected} == expected


def test_the_threshold_moves_the_open_set_numbers_alone(predictions):
    loose, strict = (evaluate_logits(predictions, threshold).numbers for threshold in (0.1, 0.5))
    moved = {name for name in loose if loose[name] != strict[name]}
    assert "f_oltr" in moved
    assert moved <= {metric.key for metric in OPEN_METRICS[:-2]}


def test_without_unknown_images_there_is_no_open_set(predictions):
    known = predictions.known
    found = evaluate_logits(Predictions(predictions.logits[known], TARGET[known], COUNTS))
    assert found.threshold is None
    assert list(found.numbers) == [metric.key for metric in METRICS]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": TARGET[:3]}, "target has 3 entries; logits have 10 images"),
        ({"train_counts": COUNTS[:3]}, "train_counts has 3 entries; logits have 4 classes"),
        ({"target": TARGET + 1.0}, "target is float64"),
        ({"target": np.where(TARGET == 3, 4, TARGET)}, "target is -1 to 4; it must be 0 to 3"),
        ({"logits": np.full((10, 4), np.nan)}, "not finite"),
        ({"logits": np.zeros((0, 4)), "target": TARGET[:0]}, "logits is empty"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, change, message):
    arrays = {"logits": logits(), "target": TARGET, "train_counts": COUNTS} | change
    with pytest.raises(ValueError, match=message):
        Predictions(**arrays)
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(DamagedPredictionsError, match=r"wrong\.npz.*" + message):
        read(tmp_path / "wrong.npz")


def test_files_that_are_none_are_named(path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz: no such file"):
        read(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no arrays")
    (tmp_path / "short.npz").write_bytes(path.read_bytes()[:200])
    np.save(tmp_path / "one.npy", TARGET)
    for name in ("text.npz", "short.npz", "one.npy"):
        with pytest.raises(DamagedPredictionsError, match=name):
            read(tmp_path / name)
    np.savez(tmp_path / "objects.npz", logits=np.array([{}, None]))
    for name, fault in (
        ("text.npz", "no zip archive, or cut off"),
        ("one.npy", "no zip archive, or cut off"),
        ("objects.npz", "an array holds Python objects"),
    ):
        with pytest.raises(DamagedPredictionsError) as error:
            read(tmp_path / name)
        remedy = "give one that a run or numpy.savez wrote"
        assert str(error.value) == f"{tmp_path / name}: not an .npz file of arrays, or damaged ({fault}); {remedy}"
    np.savez(tmp_path / "few.npz", logits=logits())
    with pytest.raises(DamagedPredictionsError, match="no target and no train_counts in it"):
        read(tmp_path / "few.npz")
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        write(read(path), tmp_path / "run.csv")


def test_custom_bounds_and_named_conventions():
    assert shot_groups("followers") is FOLLOWERS
    assert shot_groups("50,10") == ShotGroups("custom bounds", 50, 10)
    for text in ("own", "5", "1,2,3"):
        with pytest.raises(ValueError, match="one of oltr, followers"):
            shot_groups(text)


def test_command_shows_numbers_and_their_definition(path, predictions):
    result = run(path, path, "--threshold", 0.5, "--per-class")
    assert result.exit_code == 0, result.output
    assert "F (oltr-old), %" in result.output
    assert "OLTR: many >= 100, few <= 20 training images per class" in result.output
    assert "rejected below a confidence of 0.5" in result.output.replace("\n", " ")
    as_json = json.loads(run(path, "--threshold", 0.5, "--json").output)
    assert as_json["numbers"] == evaluate_logits(predictions, 0.5).numbers


def test_command_refuses_in_words(path, tmp_path):
    for arguments, message in (
        ((tmp_path / "none.npz",), "no such file"),
        ((path, "--groups", "20,100"), "few_up_to"),
        ((path, "--threshold", 7), "threshold"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.output.split())
    write(Predictions(logits(), TARGET, COUNTS + 1, "other"), tmp_path / "other.npz")
    assert "have different training images" in " ".join(run(path, tmp_path / "other.npz").output.split())


THRESHOLDS_OF_TWO = {"balanced_accuracy": 0.2, "f1": 0.3, "mcc": 0.4}


def two_classes(thresholds):
    rng = np.random.default_rng(0)
    target = np.arange(60) % 4 // 3
    z = rng.normal(size=(60, 2)) + 2 * np.eye(2)[target] + [1, 0]
    return Predictions(z, target, np.array([30, 10]), "a loss", classes=("no", "yes"), thresholds=thresholds)


@pytest.mark.parametrize("thresholds", [{}, THRESHOLDS_OF_TWO])
def test_two_classes_have_the_numbers_of_a_comparison(tmp_path, thresholds):
    predictions, path = two_classes(thresholds), tmp_path / "two.npz"
    write(predictions, path)
    found = evaluate_file(path)
    expected = closed(predictions.logits, predictions.target, [30, 10], OLTR)
    expected |= metrics_with(predictions.logits, predictions.target, 1, None, thresholds)
    assert found.numbers == expected
    out = run(path).output
    shown = [line.rsplit(maxsplit=1)[0].strip() for line in out.splitlines() if line.strip()]
    places = [shown.index(title) for title in ("AUROC, %", "average precision of yes, %", "recall of yes, %")]
    assert places == sorted(places)
    assert ("F1 of yes, tuned, %" in shown) == bool(thresholds)
    assert "shot" not in out
    assert "many >=" not in out


def test_thresholds_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(ValueError, match="they must be in"):
        two_classes({"f1": 1.5})
    write(two_classes({}), tmp_path / "two.npz")
    arrays = dict(np.load(tmp_path / "two.npz"))
    np.savez(tmp_path / "two.npz", **{**arrays, "thresholds": np.array([0.1, 0.2])})
    with pytest.raises(ValueError, match="it must be 3 floating-point numbers: of balanced_accuracy, f1, mcc"):
        evaluate_file(tmp_path / "two.npz")
