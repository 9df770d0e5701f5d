"""Promise: mistakes are the most confident ones, with the predictions of each loss, and nothing in them is markup."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cyclofocal.lab.data.config import PublishedData, TableData
from cyclofocal.lab.data.digits import all_digits
from cyclofocal.lab.data.load import table_digest
from cyclofocal.lab.metrics import log_softmax
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.report import html
from cyclofocal.lab.report.experiment import group_experiments
from cyclofocal.lab.report.html import SampleSource, page
from cyclofocal.lab.report.load import read_stored_runs
from cyclofocal.lab.report.mistakes import MOST, MOST_DIVIDED, THUMBNAIL, data_uri, find_mistakes
from cyclofocal.lab.report.run_predictions import PredictionFiles, read_predictions
from cyclofocal.lab.report.summary import summaries
from evidence import store_runs

EVIL = "<script>alert('x')</script>"
IDS = np.arange(100, 160)


def mistakes(folder, **options):
    stored = read_stored_runs([folder])
    (experiment,) = group_experiments(stored.records)
    return find_mistakes(experiment, read_predictions(experiment, PredictionFiles(stored)), folder, **options)


def html_page(folder, **options):
    stored = read_stored_runs([folder])
    found = summaries(group_experiments(stored.records))
    return page(found, samples=SampleSource(PredictionFiles(stored), folder, **options))


@pytest.fixture
def of_digits(tmp_path):
    """Run folders on digits; their logits."""
    return store_runs(tmp_path, all_digits().labels[IDS], IDS, signal=1.0)


def table_runs(folder):
    """Run folders on a table with markup in every text."""
    folder.mkdir(exist_ok=True)
    path, rng = folder / "evil.csv", np.random.default_rng(0)
    labels = [f"{EVIL} & {'yes' if i % 3 else 'no'}" for i in range(60)]
    rows = [
        f'{x:.4f},"{EVIL[:-1]}{i % 4}>",{label}'
        for i, (x, label) in enumerate(zip(rng.random(60), labels, strict=True))
    ]
    path.write_text("\n".join(["size,<img src=x onerror=alert(1)>,label", *rows]) + "\n")
    data = TableData(str(path), target="label", test_fraction=0.2, digest=table_digest(str(path)))
    target = np.array([label.endswith("yes") for label in labels], dtype=np.int64)
    recipe = replace(digits(), data=data, title=EVIL)
    store_runs(folder, target, np.arange(60), recipe=recipe, signal=1.0, classes=sorted(set(labels)))


def test_they_are_the_most_confident_over_all_runs(of_digits, tmp_path):
    target = all_digits().labels[IDS]
    means = {"ce": np.zeros(len(IDS)), "focal": np.zeros(len(IDS))}
    for (name, _), logits in of_digits.items():
        p = np.exp(log_softmax(logits.astype(np.float64)))
        means[name] += np.where(p.argmax(1) == target, 0, p.max(1)) / 2
    expected = np.argsort(-(means["ce"] + means["focal"]))[: MOST - MOST_DIVIDED].tolist()
    gaps = np.argsort(-abs(means["ce"] - means["focal"])).tolist()
    expected += [place for place in gaps if place not in expected][:MOST_DIVIDED]
    found = mistakes(tmp_path)
    assert [sample.name for sample in found.samples] == [f"image {IDS[place]}" for place in expected]
    assert found.n_divided == MOST_DIVIDED
    assert html_page(tmp_path).count("Where the losses differ most") == 1


def test_one_loss_alone_has_only_confident_mistakes(of_digits, tmp_path):
    for folder in tmp_path.glob("focal-*"):
        (folder / "predictions.npz").unlink()
    found = mistakes(tmp_path)
    assert (len(found.samples), found.n_divided) == (MOST, 0)
    assert "Where the losses differ most" not in html_page(tmp_path)


def test_each_loss_has_its_mean_prediction(of_digits, tmp_path):
    for sample in mistakes(tmp_path).samples:
        place = int(sample.name.removeprefix("image ")) - IDS[0]
        true = all_digits().labels[IDS][place]
        for name in ("ce", "focal"):
            p = np.array([np.exp(log_softmax(of_digits[name, seed][place].astype(np.float64))) for seed in (0, 1)])
            verdict = sample.verdicts[name]
            assert verdict.predicted == f"class {p.mean(0).argmax()}"
            assert verdict.probability == pytest.approx(p.mean(0).max())
            assert verdict.of_true == pytest.approx(p.mean(0)[true])
            assert verdict.correct == (p.mean(0).argmax() == true)
            assert (verdict.right, verdict.runs) == ((p.argmax(1) == true).sum(), 2)


def test_thumbnails_are_the_images(of_digits, tmp_path):
    for sample in mistakes(tmp_path).samples:
        kind, _, content = sample.thumbnail.partition(",")
        assert kind == "data:image/png;base64"
        shown = Image.open(io.BytesIO(base64.b64decode(content)))
        assert shown.tobytes() == all_digits().image(int(sample.name.removeprefix("image "))).tobytes()


def test_large_images_become_small():
    noise = np.random.default_rng(0).integers(0, 255, (800, 1200, 3), dtype=np.uint8)
    uri = data_uri(Image.fromarray(noise))
    assert uri.startswith("data:image/jpeg;base64,")
    assert len(uri) < 12_000
    assert max(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size) == THUMBNAIL


def test_samples_of_other_seeds_count_only_their_runs(tmp_path):
    labels = all_digits().labels
    store_runs(tmp_path / "a", labels[IDS], IDS, seeds=1, signal=9.0)
    store_runs(tmp_path / "b", labels[:50], np.arange(50), seeds=2, signal=1.0)
    for folder in (tmp_path / "b").glob("*-0-0"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    found = mistakes(tmp_path)
    assert found.samples
    assert all(int(sample.name.removeprefix("image ")) < 50 for sample in found.samples)
    assert {verdict.runs for sample in found.samples for verdict in sample.verdicts.values()} == {1}


def test_right_predictions_leave_no_mistakes(tmp_path):
    store_runs(tmp_path, all_digits().labels[IDS], IDS, signal=50.0)
    assert mistakes(tmp_path).missing == "every prediction is right"
    assert "Not shown: every prediction is right." in html_page(tmp_path)


def test_predictions_without_ids_name_no_samples(tmp_path):
    store_runs(tmp_path, all_digits().labels[IDS], IDS[:0])
    assert mistakes(tmp_path).missing == "the predictions do not name their samples"


def test_changed_missing_and_unwanted_data_are_only_named(of_digits, tmp_path):
    hidden = mistakes(tmp_path, show_samples=False)
    assert hidden.notes == ("The samples are not shown, as asked for.",)
    table_runs(tmp_path / "a")
    assert mistakes(tmp_path / "a").columns
    (tmp_path / "a" / "evil.csv").write_text("size,label\n1,2\n")
    changed = mistakes(tmp_path / "a")
    assert "changed" in changed.notes[0]
    (tmp_path / "a" / "evil.csv").unlink()
    missing = mistakes(tmp_path / "a")
    assert "no such file" in missing.notes[0]
    for found in (hidden, changed, missing):
        assert len(found.samples) == MOST
        assert found.columns == ()
        assert all(re.fullmatch(r"number \d+", sample.name) for sample in found.samples)
        assert not any(sample.thumbnail or sample.values for sample in found.samples)


class Elements(HTMLParser):
    """Parser of the names of all elements, of their event attributes, and of the text."""

    def __init__(self):
        super().__init__()
        self.names, self.events, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.events += [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("changed", [False, True])
def test_nothing_of_a_table_is_markup(changed, tmp_path):
    table_runs(tmp_path)
    if changed:
        (tmp_path / "evil.csv").write_text(f"{EVIL},label\n1,2\n")
    found = Elements()
    found.feed(html_page(tmp_path))
    assert found.names.count("script") == 1  # of the page
    assert not found.events
    assert "img" not in found.names
    text = "".join(found.text)
    assert f"{EVIL[:-1]}1>" in text or changed
    assert "<img src=x onerror=alert(1)>" in text or changed
    assert f"{EVIL} & no" in text  # a class
    assert ("Values of these rows" in text) != changed


def test_the_page_shows_images_with_text_alternatives(of_digits, tmp_path):
    text = html_page(tmp_path)
    pictures = re.findall(r'<img src="data:image/png;base64,[\w+/=]+" alt="([^"]+)"', text)
    assert len(pictures) == MOST
    assert all(alt.startswith("Test image of class class ") for alt in pictures)
    assert text.count('class="verdict"') == 2 * MOST
    assert len(text) < 150_000
    assert "<img" not in html_page(tmp_path, show_samples=False)


def test_a_page_of_records_alone_says_why_parts_are_left_out(of_digits, tmp_path):
    lines = "".join((folder / "record.jsonl").read_text() for folder in sorted(tmp_path.glob("*-0-0")))
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "a.jsonl").write_text(lines)
    text = html_page(tmp_path / "alone")
    assert "most confident mistakes: not shown; they need the predictions of the runs" in text
    assert "<h3>ROC" not in text
    assert "Precision of each class" in text  # from the records


def test_a_page_of_many_experiments_reads_no_predictions(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "MAX_WITH_PREDICTIONS", 2)
    for place in range(3):
        recipe = replace(digits(), title=f"digits {place}", data=PublishedData("digits", test_per_class=place + 1))
        store_runs(tmp_path / str(place), all_digits().labels[IDS], IDS, seeds=1, recipe=recipe)
    text = html_page(tmp_path)
    assert "up to 2 experiments, and this has 3" in text
    assert "<img" not in text


def test_a_hundred_classes_have_confusions_in_place_of_matrices(tmp_path):
    target = np.repeat(np.arange(100), 3)
    store_runs(tmp_path, target, np.arange(300), signal=2.0)
    text = html_page(tmp_path)
    assert "Confusion matrices: not drawn for more than 30 classes, here 100" in text
    assert 'class="cell"' not in text
    assert "Most frequent confusions" in text
    assert "each of 100 classes against the others, averaged" in text
    assert len(text) < 250_000
