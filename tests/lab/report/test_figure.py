"""Promise: the figure is drawn in both formats, for one experiment and many, reproducibly."""

import xml.etree.ElementTree as ElementTree

import pytest

from cyclofocal.lab.report.experiment import group_experiments
from cyclofocal.lab.report.figure import draw_confusion, draw_differences
from cyclofocal.lab.report.summary import summaries
from evidence import data_sets, grid, measured


@pytest.mark.parametrize(
    "records", [grid(10), grid(1), data_sets(3), data_sets(5)], ids=["one", "one seed", "few", "many"]
)
def test_png(records, tmp_path):
    draw_differences(summaries(group_experiments(list(records))), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_svg_is_the_same_every_time(tmp_path):
    found = summaries(group_experiments(list(grid(7))))
    for name in ("a.svg", "b.svg"):
        draw_differences(found, tmp_path / name)
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_confusion_in_both_formats(tmp_path):
    (found,) = group_experiments(list(measured(grid(3))))
    assert found.confusion["ce"].tolist() == [[45, 5, 0], [4, 40, 2], [1, 1, 2]]
    draw_confusion(found, tmp_path / "a.png")
    draw_confusion(found, tmp_path / "a.svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    (folds,) = group_experiments(list(measured(grid(2, folds=5))))
    assert folds.confusion["ce"][0, 0] == 5 * 45  # each sample of a seed is tested in one fold
    with pytest.raises(ValueError, match="at most 100 classes"):
        draw_confusion(group_experiments(list(grid(3)))[0], tmp_path / "b.png")


def test_nothing_to_compare_is_refused(tmp_path):
    alone = summaries(group_experiments([r for r in grid(3) if r.loss["name"] == "ce"]))
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_differences(alone, tmp_path / "a.png")
