"""`cyclofocal report` writes every format from whatever it finds, and refuses nonsense before any work."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from typer.testing import CliRunner

from cyclofocal.lab.commands import app
from cyclofocal.lab.commands.output import print_comparison
from cyclofocal.lab.data.digits import all_digits
from evidence import data_sets, grid, measured, store_runs


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    text = "".join(json.dumps(asdict(record)) + "\n" for record in grid(8))
    (folder / "a.jsonl").write_text(text + text.splitlines()[0][:70] + "\n")
    return folder


def report(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_every_format_at_once_with_damaged_records(runs, tmp_path):
    paths = [tmp_path / "out" / f"report{suffix}" for suffix in (".html", ".md", ".csv", ".tex")]
    done = report(runs, *(word for path in paths for word in ("-o", path)))
    assert done.exit_code == 0, done.output
    for path, words in zip(paths, ("<!doctype html>", "## handwritten", "experiment,", r"\begin{table}"), strict=True):
        assert words in path.read_text()
        assert str(path) in done.output
    assert "a.jsonl, line 25: not JSON" in " ".join(done.output.split())
    assert "a.jsonl, line 25: not JSON" in paths[0].read_text()


def test_without_an_output_the_terminal_shows_the_report(runs):
    done = report(runs / "a.jsonl", "--metric", "nll", "--reference", "focal")
    assert "differences to focal" in done.output
    assert "Significantly worse: cyclical focal." in done.output
    assert "accuracy, %" not in done.output
    more = report(runs / "a.jsonl", "--metric", "nll", "--reference", "focal", "--all")
    assert "cyclical focal: significantly worse than focal; its negative log-likelihood is higher" in more.output
    assert "accuracy, %" in more.output
    assert "NLL: negative log-likelihood." in more.output


def test_margin_and_confusion(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(asdict(record)) + "\n" for record in measured(grid(8))))
    done = report(tmp_path, "--all", "--margin", "1.5", "--confusion", tmp_path / "confusion.png")
    assert "focal: equivalent to cross-entropy in balanced accuracy, within a margin of 1.5 points" in done.output
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(asdict(record)) + "\n" for record in data_sets(2)))
    refused = report(tmp_path, "--confusion", tmp_path / "confusion.png")
    assert refused.exit_code == 2
    assert "records of 3 experiments" in refused.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["runs", "-o", "a.pdf"], "'a.pdf' must end in .html, .md, .csv or .tex"),
        (["runs", "--metric", "balanced"], "Did you mean 'balanced_accuracy'?"),
        (["people.csv"], "is a table, not records of runs; `cyclofocal compare people.csv --target COLUMN`"),
        (["runs", "--reference", "cycical"], "Did you mean 'cyclical'?"),
        (["runs", "--margin", "-1"], "-1.0 is no margin; it must be a finite number above 0, such as 0.5."),
        (["runs", "--margin", "inf"], "inf is no margin; it must be a finite number above 0, such as 0.5."),
        (["runs", "--confusion", "a.pdf"], "'a.pdf' must end in .png or .svg"),
        (["runs", "--confusion", "a.png"], "no loss has a confusion matrix in all its records"),
        (["runs", "-o", "page.md"], "a page with places for evidence, which would be overwritten"),
    ],
)
def test_wrong_arguments_are_refused(runs, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "page.md").write_text("<!-- evidence: a.jsonl -->\n<!-- end of evidence -->\n")
    before = sorted(tmp_path.rglob("*"))
    done = report(*arguments)
    assert done.exit_code == 2
    assert words in " ".join(done.output.replace("│", " ").split())
    assert sorted(tmp_path.rglob("*")) == before


def test_a_loss_edited_between_its_runs_can_be_the_reference(tmp_path):
    mine = [replace(r, loss=r.loss | {"digest": "ab" if r.seed < 4 else "cd"}) for r in grid(8)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(asdict(record)) + "\n" for record in mine))
    assert "differences to focal" in report(tmp_path, "--reference", "focal@ab").output
    refused = report(tmp_path, "--reference", "focal").output.replace("│", " ")
    assert "Did you mean 'focal@" in " ".join(refused.split())


def test_nothing_to_report_is_an_error(tmp_path):
    done = report(tmp_path)
    assert done.exit_code == 1
    assert "no record of a finished run" in " ".join(done.output.split())


def test_a_comparison_of_many_data_sets_ends_with_ranks(capsys, tmp_path):
    print_comparison(list(data_sets(6)), picture=tmp_path / "a.png")
    said = capsys.readouterr().out
    assert "mean rank" in said
    assert said.startswith("Use cyclical focal: over 6 data sets")
    assert (tmp_path / "a.png").exists()


def test_a_comparison_whose_reference_failed_still_ends(capsys, tmp_path):
    print_comparison([r for r in grid(7) if r.loss["name"] != "ce"], "ce", picture=tmp_path / "a.png")
    assert "no picture: no loss can be compared with the reference" in capsys.readouterr().out


def test_the_page_has_the_mistakes_of_run_folders(tmp_path):
    store_runs(tmp_path / "runs", all_digits().labels[:60], np.arange(60), signal=1.0)
    for options, shown in ((), True), (("--no-samples",), False):
        done = report(tmp_path / "runs", "-o", tmp_path / "page.html", "--root", tmp_path, *options)
        assert done.exit_code == 0, done.output
        text = (tmp_path / "page.html").read_text()
        assert "Most confident mistakes" in text
        assert "ROC and precision-recall curves" in text
        assert ("<img" in text) == shown
