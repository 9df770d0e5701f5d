"""Pictures show what was evaluated: every class with its accuracy and images, every run with its two histograms."""

import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from cyclofocal.lab.oltr import figures as picture
from cyclofocal.lab.oltr.evaluation import evaluate_logits
from cyclofocal.lab.training.predictions import Predictions

COUNTS = np.array([30, 400, 5])


def run(title, counts=COUNTS, unknown=20):
    rng = np.random.default_rng(0)
    target = np.concatenate([np.repeat(np.arange(len(counts)), 10), np.full(unknown, -1)])
    logits = rng.normal(size=(len(target), len(counts)))
    logits[np.arange(len(target)), target] += 2 * (target >= 0)
    return Predictions(logits, target, np.asarray(counts), title)


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is drawn."""
    drawn, figure = [], Figure.savefig

    def keep(self, *arguments, **options):
        drawn.append(self)
        return figure(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return drawn


def test_classes_from_head_to_tail_with_a_line_per_run(figures, tmp_path):
    evaluations = [evaluate_logits(run("one")), evaluate_logits(run("two"))]
    picture.draw_classes(evaluations, tmp_path / "classes.svg")
    frequency, accuracy = figures[0].axes
    assert [bar.get_height() for bar in frequency.patches] == [400, 30, 5]
    lines = [line for line in accuracy.lines if line.get_label() in ("one", "two")]
    recall = evaluations[0].recall
    assert [line.get_ydata().tolist() for line in lines] == [[100 * recall[c] for c in (1, 0, 2)]] * 2
    assert {text.get_text() for text in accuracy.texts} == {"many", "medium", "few"}
    assert "OLTR: many >= 100" in figures[0].get_supxlabel()
    assert (tmp_path / "classes.svg").read_text().startswith("<?xml")


def test_runs_of_one_title_are_one_line_and_one_panel(figures, tmp_path):
    one, other = run("loss"), run("loss")
    other.logits[:, 0] += 1.5
    runs = [one, other, run("another")]
    evaluations = [evaluate_logits(found) for found in runs]
    picture.draw_classes(evaluations, tmp_path / "classes.png")
    accuracy = figures[0].axes[1]
    (line,) = [line for line in accuracy.lines if line.get_label() == "loss"]
    means = 50 * (np.array(evaluations[0].recall) + evaluations[1].recall)
    np.testing.assert_allclose(line.get_ydata(), means[[1, 0, 2]])
    picture.draw_confidence(runs, tmp_path / "confidence.png")
    titles = [axes.get_title(loc="left") for axes in figures[1].axes if axes.get_visible()]
    separation = 50 * sum(found.numbers["auroc"] for found in evaluations[:2])
    assert titles[0] == f"loss   (AUROC {separation:.1f} %)"
    assert len(titles) == 2
    bars = accuracy.collections[0].get_segments()
    own = 100 * np.array([evaluation.recall for evaluation in evaluations[:2]])[:, [1, 0, 2]]
    np.testing.assert_allclose([bar[:, 1] for bar in bars], np.stack([own.min(0), own.max(0)], axis=1))
    assert "Dots: means" in figures[0].get_supxlabel()


def test_many_classes_are_averaged_and_dotted(figures, tmp_path):
    counts = np.arange(100, 200)[::-1]
    found = evaluate_logits(run("one", counts))
    picture.draw_classes([found], tmp_path / "classes.png")
    accuracy = figures[0].axes[1]
    (line,) = [line for line in accuracy.lines if line.get_label() == "one"]
    edges = np.linspace(0, 100, picture.DOTS + 1).round().astype(int)
    means = [100 * np.mean(found.recall[a:b]) for a, b in itertools.pairwise(edges)]
    np.testing.assert_allclose(line.get_ydata(), means)
    assert len(accuracy.collections[0].get_offsets()) == 100


def test_histograms_of_each_kind_add_up_to_all_its_images(figures, tmp_path):
    picture.draw_confidence([run("one"), run("two")], tmp_path / "confidence.png", threshold=0.1)
    panels = [axes for axes in figures[0].axes if axes.get_visible()]
    assert len(panels) == 2
    for panel in panels:
        steps = [patch for patch in panel.patches if isinstance(patch, matplotlib.patches.StepPatch)]
        assert [step.get_data()[0].sum() for step in steps] == pytest.approx([100] * 4)
        assert "AUROC" in panel.get_title(loc="left")
    assert (tmp_path / "confidence.png").stat().st_size > 10_000


def test_runs_that_cannot_be_drawn_together_are_refused(tmp_path):
    with pytest.raises(ValueError, match="different training images per class"):
        picture.draw_classes([evaluate_logits(run("one")), evaluate_logits(run("two", COUNTS + 1))], tmp_path / "a.png")
    with pytest.raises(ValueError, match="one has no unknown images"):
        picture.draw_confidence([run("one", unknown=0)], tmp_path / "a.png")
