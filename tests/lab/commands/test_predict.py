"""The commands on docs/models.md and docs/walks.md run; `predict` and `export` report and refuse in a line."""

import glob
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import cyclofocal.lab as lab
from cyclofocal.lab import cli

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "models.md").read_text()
SMALLER = {
    "20_000": "800",
    "5_000": "90",
    "2000, seed": "400, seed",
    "validation_images=80": "validation_images=8",
    "--seeds 8": "--seeds 2 --epochs 2",
    "--all-data": "--all-data --epochs 2",
}
"""Numbers of docs/walks.md, and those that take seconds."""

pytestmark = pytest.mark.usefixtures("one_thread")


def commands(page=PAGE):
    """Command lines of a page, without those whose arguments are placeholders."""
    lines = re.findall(r"^cyclofocal .*", page, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines if "DATA..." not in line]


def run(arguments, monkeypatch, capsys):
    """Run a command as a shell does, which replaces patterns; its exit code, output and messages."""
    expanded = [found for word in arguments for found in (sorted(glob.glob(word)) if "*" in word else [word])]
    monkeypatch.setattr(sys, "argv", expanded)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr()
    return stop.value.code, said.out, re.sub(r"[\s│]+", " ", said.err)


def test_both_walks_with_smaller_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "walks.md").read_text()
    for number, smaller in SMALLER.items():
        assert number in page
        page = page.replace(number, smaller)
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, {})
    assert [words[1] for words in commands(page)] == 2 * ["data", "compare", "report", "train", "predict"]
    for arguments in commands(page):
        here = {"compare": ["--workers", "1"], "train": ["--cpu"], "predict": ["--cpu"]}.get(arguments[1], [])
        code, out, err = run([*arguments, *here], monkeypatch, capsys)
        assert code == 0, err
        if arguments[1] == "compare":  # its options are those of the training that follows it
            printed = re.search("Train the model: (.*?) --loss", " ".join(out.split()))
            place = min(arguments.index(option) for option in ("--seeds", "--losses") if option in arguments)
            assert {*arguments[2:place]} - {"12"} < {*shlex.split(printed[1])}
    assert len(pd.read_csv("predictions.csv")) == 90
    assert len(pd.read_csv("shapes.csv")) == len(list(Path("new").rglob("*.png")))
    assert {path.name for path in Path().glob("*.html")} == {"payments.html", "shapes.html"}


def test_the_walk_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], {})
    assert len(commands()) == 7
    said = []
    for arguments in commands():
        if "onnx" in arguments and not importlib.util.find_spec("onnxruntime"):
            continue
        here = ["--workers", "1"] if arguments[1] == "compare" else ["--cpu"] if arguments[1] != "export" else []
        code, out, err = run([*arguments, *here], monkeypatch, capsys)
        assert code == 0, err
        said.append(out)
    assert "cross-entropy, seed 0: AUROC" in said[1]
    assert "300 predictions: predictions.csv" in said[2]
    assert "504 samples trained on, 96 for validation, not evaluated" in said[3]
    assert "model.pt2: largest difference to the logits of the model" in said[5]
    found = pd.read_csv("predictions.csv")
    (folder,) = glob.glob("runs/people/ce-seed0-*")
    assert found["class"].tolist() == lab.load(folder).predict(pd.read_csv("new.csv")).tolist()
    assert list(pd.read_csv("top.csv")) == ["row", "class", "probability"]
    for options, start in (([], "0.5"), (["--threshold", "0.25"], "0.25")):
        out = run(["cyclofocal", "predict", folder, "people.csv", "--cpu", *options], monkeypatch, capsys)[1]
        metrics = r"recall [\d.]+%, precision [\d.]+%; balanced accuracy [\d.]+%, accuracy [\d.]+% of 600 labelled"
        assert re.search(rf"'(yes|no)', predicted from a probability of {start}: {metrics}", out)
    assert np.mean(found["class"] == pd.read_csv("top.csv")["class"]) > 0.9

    new = pd.read_csv("new.csv")
    new.rename(columns={"town": "city"}).to_csv("renamed.csv", index=False)
    new.assign(town="rome", extra=1).to_csv("other.csv", index=False)
    code, out, err = run(["cyclofocal", "predict", folder, "other.csv"], monkeypatch, capsys)
    assert code == 0
    assert "columns not used, for the model was trained without them: extra" in err
    assert "column 'town': not seen in training, so encoded as none of its categories: rome" in err
    Path("empty").mkdir()
    code, out, _ = run(["cyclofocal", "predict", folder, "new.csv", "--cpu"], monkeypatch, capsys)
    assert (code, out.endswith("300 predictions: predictions.csv (replaced)\n")) == (0, True)
    for arguments, words in (
        (["predict", folder, "renamed.csv"], "stopped: renamed.csv: no column 'town', which the model was trained on"),
        (["predict", folder, "new.csv", "--id", "name"], "id column is 'name'; it must be one of age, town, member"),
        (["predict", folder, "new.csv", "--balanced", "--calibrated"], "exclude each other"),
        (["predict", folder, "picture.png"], "the model was trained on a table"),
        (
            ["predict", "runs/people", "new.csv"],
            "people: no run, but a folder of runs; give one with a model: runs/people/",
        ),
        (["predict", "empty", "new.csv"], "no model.json, and so no model"),
        (["export", "nowhere"], "nowhere: no such folder"),
    ):
        code, _, err = run(["cyclofocal", *arguments], monkeypatch, capsys)
        assert code == 1
        assert words in err
        assert "Traceback" not in err


def test_an_output_of_another_format_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(["cyclofocal", "predict", "run", "new.csv", "-o", "new.txt"], monkeypatch, capsys)
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert "must end in .csv" in err
