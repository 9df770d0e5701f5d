"""Promise: the page needs no other file, contains the summary, and works in a browser."""

import html
import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cyclofocal.lab.data.digits import all_digits
from cyclofocal.lab.report.charts import forest, learning_curves
from cyclofocal.lab.report.experiment import group_experiments
from cyclofocal.lab.report.findings import conclusions
from cyclofocal.lab.report.html import SampleSource, page
from cyclofocal.lab.report.load import read_stored_runs
from cyclofocal.lab.report.ranking import ranking
from cyclofocal.lab.report.result_tables import recipe_settings
from cyclofocal.lab.report.run_predictions import PredictionFiles
from cyclofocal.lab.report.summary import summaries
from evidence import binary, data_sets, grid, measured, store_runs

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "link", "line", "br", "img"}

PROBE = """
<script>
const said = {errors: [], orders: []};
addEventListener("error", (event) => said.errors.push(event.message));
const table = document.querySelector("table.sortable");
const column = (index) => [...table.tBodies[0].rows].map((row) => row.cells[index].dataset.key);
const press = (index) => { table.tHead.rows[0].cells[index].querySelector("button").click(); return column(index); };
said.orders = [column(1), press(1), press(1), press(0)];
said.sorted = [...table.tHead.rows[0].cells].map((head) => head.getAttribute("aria-sort"));
said.focusable = table.querySelector("button").tabIndex;
const shown = [...document.querySelectorAll("figure svg")].filter((svg) => svg.checkVisibility());
const boxes = shown.map((svg) => svg.getBoundingClientRect());
said.drawn = boxes.filter((box) => box.width > 100 && box.height > 80).length;
said.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
document.body.dataset.said = JSON.stringify(said);
</script>
"""


class Tags(HTMLParser):
    """Parser of the elements left open and of the addresses to load."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset")]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def made(records):
    found = summaries(group_experiments(list(records)))
    return page(found, ranking(found))


def with_predictions():
    """Page of run folders on digits, with curves and pictures of mistakes."""
    with tempfile.TemporaryDirectory() as folder:
        store_runs(Path(folder), all_digits().labels[:60], np.arange(60), signal=1.0)
        stored = read_stored_runs([Path(folder)])
        return page(
            summaries(group_experiments(stored.records)), samples=SampleSource(PredictionFiles(stored), Path(folder))
        )


ONE, MANY, WHOLE = made(grid(10)), made(data_sets(6)), with_predictions()


@pytest.mark.parametrize("text", [ONE, MANY, WHOLE], ids=["one", "many", "whole"])
def test_it_is_well_formed_and_loads_nothing(text):
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert all(address.startswith(("#", "data:")) for address in tags.addresses)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "default-src 'none'" in text


def test_the_page_contains_every_part():
    (summary,) = summaries(group_experiments(list(grid(10))))
    text = html.unescape(re.sub(r"<[^>]+>", " ", ONE))
    for sentence in conclusions(summary):
        assert sentence in text
    for words in (
        *("Paired differences", "Learning curves", "Accuracy by class frequency", "Schedule of eta", "Reliability"),
        *("Settings", "gamma_hc", "Environment", "2.14", "cyclofocal compare digits --seeds 10", "1.50 ×"),
        *("Each class", "owl", "some CPU"),
    ):
        assert words in text


def test_two_classes_name_the_threshold_and_counts_are_whole():
    confusion = [[1140, 60], [12, 88]]
    records = [replace(r, confusion=confusion, train_counts=[900, 90]) for r in binary(measured(grid(3)))]
    text = made(records)
    assert ">1140<" in text
    assert "e+03" not in text
    assert text.count("at the threshold 0.5") >= 2
    assert "at the threshold" not in made(list(measured(grid(3))))


def test_later_records_add_tables_and_pictures():
    text = made(list(measured(grid(10))))
    page = html.unescape(re.sub(r"<[^>]+>", " ", text))
    for words in (
        "cross-entropy, post-hoc adjusted",
        "MCC",
        "macro AUROC, %",
        "Precision of each class",
        "a cell is the mean",
        "none significantly",
    ):
        assert words in page
        assert words not in ONE
    assert text.count("Confusion matrix of ") == 3
    assert text.count('class="cell"') == 3 * 9


@pytest.mark.parametrize("records", [grid(10), measured(grid(10))], ids=["old", "new"])
def test_every_picture_has_a_text_alternative(records):
    page = made(list(records))
    pictures = re.findall(r'<svg viewBox="[^"]*"([^>]*)>', page)
    labels = [re.search(r'role="img" aria-label="([^"]{20,})"', attributes) for attributes in pictures]
    legend = page.count('<svg viewBox="0 0 26 10">')
    drawn = 9 + 3 + 3 + 3 * page.count("a cell is the mean")
    assert len([label for label in labels if label]) == len(pictures) - legend == drawn


@pytest.mark.parametrize("text", [ONE, MANY, made(list(measured(grid(8)))), WHOLE], ids=["one", "many", "new", "whole"])
def test_every_class_of_a_picture_has_a_style(text):
    style, body = re.search(r"<style>(.*?)</style>(.*)", text, re.DOTALL).groups()
    pictures = "".join(re.findall(r"<svg.*?</svg>", body, re.DOTALL))
    used = {name for names in re.findall(r'class="([^"]*)"', pictures) for name in names.split()}
    assert {"reference", "hue1", "axis"} <= used
    assert {name for name in used if f".{name}" not in style} == {"name"}


def test_old_records_have_no_empty_figures():
    text = made([replace(r, per_class=[], reliability=[]) for r in grid(8)])
    assert "Accuracy by class frequency: not drawn; the records do not contain" in text
    assert "Reliability diagrams: not drawn" in text
    assert "Learning curves: not drawn" not in text


@pytest.mark.parametrize(
    ("primary", "label"),
    [("", "balanced validation accuracy, %"), ("accuracy", " validation accuracy, %")],
)
def test_learning_curves_show_validation_accuracy(primary, label):
    epochs = [{"validation_accuracy": 0.9, "validation_balanced_accuracy": 0.6, "train_accuracy": 1.0}] * 3
    (summary,) = summaries(group_experiments([replace(r, epochs=epochs) for r in grid(2)]), metric=primary)
    assert label.strip() in learning_curves(summary)
    assert ("balanced" in learning_curves(summary)) == (not primary)


def test_settings_can_be_copied_and_numbers_have_minus_signs():
    small = [replace(r, loss=r.loss | {"gamma_hc": 2.5e-05}) for r in grid(7)]
    text = made(small)
    assert ">2.5e-05<" in text
    assert "−0.0" in text
    assert 'data-key=""' in text  # a missing value, which stays last


def test_labels_of_a_forest_plot_do_not_cross_its_zero_line():
    (summary,) = summaries(group_experiments(list(grid(8))))
    svg = forest(summary, summary.primary)
    labels = [float(y) for y in re.findall(r'<text class="name" x="[^"]+" y="([^"]+)"', svg)]
    lines = re.findall(r'<polyline class="axis" points="([\d.]+),([\d.]+) ([\d.]+),([\d.]+)"', svg)
    vertical = [(float(top), float(bottom)) for left, top, right, bottom in lines if left == right]
    marks = [place for place in vertical if place[1] - place[0] > 5]  # ticks are 4 pixels high
    assert (len(labels), len(marks)) == (2, 2)
    assert not any(top < y + 2 and y - 9 < bottom for y in labels for top, bottom in marks)  # 11 pixels of letters


def test_axes_have_minus_signs():
    (summary,) = summaries(group_experiments(list(grid(8))))
    ticks = re.findall(r'class="tick"[^>]*>([^<]+)<', forest(summary, summary.primary))
    assert any(tick.startswith("\N{MINUS SIGN}") for tick in ticks)
    assert not any("-" in tick for tick in ticks)


def test_settings_of_a_recipe_are_words():
    (summary,) = summaries(group_experiments([replace(r, recipe=r.recipe | {"milestones": []}) for r in grid(2)]))
    found = {name.text: value.text for name, value in recipe_settings(summary).rows}
    assert "milestones" not in found
    assert sorted(found["groups"].split(", ")) == ["few_up_to 10", "many_from 40", "name digits"]
    (stepped,) = summaries(group_experiments([replace(r, recipe=r.recipe | {"milestones": [3, 5]}) for r in grid(2)]))
    assert [value.text for name, value in recipe_settings(stepped).rows if name.text == "milestones"] == ["3, 5"]


def test_the_encoding_of_columns_is_shown_if_there_is_any():
    encoded = [replace(r, columns={"age <years>": "number", "town": f"{3 + r.seed} categories"}) for r in grid(2)]
    text = made(encoded)
    (details,) = re.findall(r"<details[^>]*><summary><h3>How each column.*?</details>", text, re.DOTALL)
    assert not re.match(r"<details[^>]* open", details)
    for words in ("age &lt;years&gt;", ">number<", ">3 categories; 4 categories<"):
        assert words in details
    assert "How each column" not in ONE


def test_titles_are_escaped():
    evil = [replace(r, recipe={**r.recipe, "title": "<script>alert(1)</script>"}) for r in grid(2)]
    assert "<script>alert" not in made(evil)


def test_problems_are_on_the_page():
    found = summaries(group_experiments(list(grid(7))))
    assert "a.jsonl, line 3: not JSON" in page(found, None, ["a.jsonl, line 3: not JSON; left out."])


def test_the_same_records_give_the_same_page():
    assert made(grid(10)) == ONE


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
@pytest.mark.parametrize(("text", "pictures"), [(ONE, 15), (MANY, 1), (WHOLE, 14)], ids=["one", "many", "whole"])
def test_it_renders_sorts_and_has_no_error_in_a_browser(text, pictures, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=400,900"]
    command = [BROWSER, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'data-said="([^"]*)"', done.stdout)
    assert found, done.stderr
    said = json.loads(html.unescape(found[1]))
    before, rising, falling, names = said["orders"]
    assert rising == sorted(before, key=float)
    assert falling == rising[::-1]
    assert names == sorted(names)
    assert said["sorted"][:2] == ["ascending", None]
    assert said["focusable"] == 0
    assert said["drawn"] == pictures
    assert not said["wide"]
    assert said["errors"] == []
    assert "CONSOLE" not in done.stderr
