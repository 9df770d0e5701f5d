"""The demo command: it shows, stores, resumes after a kill, and refuses nonsense before any work."""

import functools
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from PIL import Image
from typer.testing import CliRunner

from cyclofocal.lab import cli
from cyclofocal.lab.commands import app
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.loss import CYCLICAL
from cyclofocal.lab.records import RunRecord, read_records
from cyclofocal.lab.training.run_folder import run_folder

COMMAND = [sys.executable, "-m", "cyclofocal.lab.cli"]


def start(*arguments, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*COMMAND, *map(str, arguments)], **pipes, **options)


def run(*arguments):
    process = start(*arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def stored(folder):
    """What lies in the folders of the runs."""
    return [line for path in sorted(folder.glob("*/*/record.jsonl")) for line in read_records(path)]


def test_demo_shows_and_stores_and_a_rerun_reuses(tmp_path, monkeypatch, capsys):
    command = ("compare", "digits", "--seeds", 2, "--epochs", 2, "--out", tmp_path)
    code, out, err = run(*command)
    assert code == 0, err
    for words in ("cross-entropy", "logit-adjusted", "cyclical focal", "balanced accuracy, %"):
        assert words in out
    title, answer, *_ = out.splitlines()
    assert (title, answer[:54]) == (digits().title, "Nothing can be concluded: 2 seeds are too few, 5 compa")
    assert "few-shot, %" not in out
    plan = "handwritten digits, long-tailed 50:1: small-convnet, 8 x 8 pixels, 2 epochs"
    losses = "cross-entropy, label smoothing, weighted cross-entropy, logit-adjusted, focal, cyclical focal"
    assert f"{plan}\n6 losses ({losses}), 2 seeds\n12 runs, 0 of them finished before" in err
    assert re.search(r"\n1 of 12 runs, about \d:\d\d:\d\d left\n", err)
    assert "\x1b" not in out
    assert (tmp_path / "comparison.png").stat().st_size > 20_000
    records = stored(tmp_path)
    assert len(records) == 12
    assert {(r.loss["name"], r.seed) for r in records} == {
        (name, seed)
        for name in ("ce", "smoothed", "weighted", "logit-adjusted", "focal", "cyclical")
        for seed in (0, 1)
    }
    assert all(len(r.epochs) == 2 and r.device == "cpu" and "torch" in r.versions for r in records)
    assert {(r.primary_metric, r.margin) for r in records} == {("balanced_accuracy", 0.5)}

    monkeypatch.setattr(sys, "argv", ["cyclofocal", *map(str, command)])
    with pytest.raises(SystemExit):
        cli.main()
    again = capsys.readouterr()
    assert "12 runs, 12 of them finished before" in again.err
    assert again.out == out
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--all"])
    with pytest.raises(SystemExit):
        cli.main()
    everything = capsys.readouterr().out
    for words in ("few-shot, %", "ECE", "Training samples per class"):
        assert words in everything


@pytest.mark.skipif(os.name != "posix", reason="kills a process group's leader")
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_stopped_comparison_leaves_no_process_and_resumes(stop, tmp_path):
    command = ("compare", "digits", "--seeds", 2, "--epochs", 20, "--losses", "ce,cyclical", "--out", tmp_path)
    heeded = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a suite in the background ignores it
    process = start(*command, start_new_session=True, preexec_fn=heeded)
    while not stored(tmp_path):
        assert _still_runs(process), process.stderr.read()
    process.send_signal(stop)
    _, err = process.communicate(timeout=100)  # returns when the workers too have closed their ends
    if stop == signal.SIGINT:
        assert process.returncode == 130
        assert re.search(r"stopped: \d of 4 runs are stored, the same command continues", err)
        assert "Traceback" not in err
        return  # it goes on in the same way

    damaged, *whole = sorted(tmp_path.glob("*/*/record.jsonl"))
    assert all(isinstance(record, RunRecord) for record in stored(tmp_path))
    damaged.write_text(damaged.read_text()[:100])
    times = {path: path.stat().st_mtime_ns for path in whole}
    code, out, err = run(*command)
    assert code == 0, err
    assert f"{damaged}, line 1: not JSON" in err
    assert f"4 runs, {len(whole)} of them finished before" in err
    assert {path: path.stat().st_mtime_ns for path in whole} == times
    assert sum(isinstance(record, RunRecord) for record in stored(tmp_path)) == 4
    assert "differences to cross-entropy" in out


def test_invalid_image_folder_is_refused_before_any_run(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "images" / name / "0.png")
    code, _, err = run("compare", tmp_path / "images", "--seeds", 1, "--out", tmp_path / "runs")
    assert code == 2
    assert "--set test_fraction=0.2" in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "runs").exists()


def test_images_that_have_changed_are_another_experiment(tmp_path):
    images = tmp_path / "images"
    for name, number in itertools.product(("ant", "bee"), range(4)):
        (images / name).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 40 * number).save(images / name / f"{number}.png")
    settings = ("test_fraction=0.5", "width=2", "image_size=16", "batch_size=2")
    command = [
        "compare",
        images,
        "--losses",
        "ce,focal",
        "--seeds",
        1,
        "--epochs",
        1,
        "--out",
        tmp_path / "runs",
        "--small",
    ]
    command += [word for setting in settings for word in ("--set", setting)]
    assert "2 runs, 0 of them finished before" in run(*command)[2]
    code, _, err = run(*command)
    assert code == 0, err
    assert "small-resnet, 16 x 16 pixels, 1 epoch" in " ".join(err.split())
    assert "2 runs, 2 of them finished before" in err
    assert not list((tmp_path / "runs").rglob("model.json"))
    assert "2 runs, 0 of them finished before" in run(*command, "--keep-models")[2]
    assert len(list((tmp_path / "runs" / "images").glob("*/model.json"))) == 2
    (images / "ant" / "3.png").unlink()
    assert "2 runs, 0 of them finished before" in run(*command)[2]


def test_failed_run_is_reported_last_others_are_shown(tmp_path):
    recipe = replace(digits(), epochs=2)
    broken = run_folder(tmp_path, recipe, CYCLICAL, 1)
    broken.mkdir(parents=True)
    (broken / "run.json").write_text(json.dumps({"seed": 7}))
    code, out, err = run("compare", "digits", "--seeds", 2, "--epochs", 2, "--losses", "ce,cyclical", "--out", tmp_path)
    assert code == 1
    assert "differences to cross-entropy" in out
    assert len(stored(tmp_path)) == 3
    told, last = err.strip().splitlines()[-2:]
    assert told.startswith("failed: digits, cyclical focal, seed 1: RunMismatchError: ")
    assert last == "1 of 4 runs failed; the same command tries them again"


def _still_runs(process):
    try:
        process.wait(timeout=0.05)
    except subprocess.TimeoutExpired:
        return True
    return False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digit"], ["'digit' is no recipe", "`cyclofocal recipes`", "'digits'?"]),
        (["digits,nowhere.csv", "--target", "y"], ["target is 'y', but digits is no table"]),
        (["nowhere.csv", "--target", "y"], ["nowhere.csv: no such file"]),
        (["digits", "--losses", "cyclical:gamma_hc=2,cyclical_factor=8"], ["is one loss", "two or more"]),
        (["digits", "--tune", "3"], ["--tune", "digits has no validation data to choose settings by"]),
        (["digits", "--losses", "ce,cycical"], ["'cycical' is not a loss", "smoothed", "'cyclical'?"]),
        (["digits", "--losses", "ce"], ["'ce' is one loss", "two or more", "cyclofocal train", "--loss ce"]),
        (["digits", "--losses", "ce,focal,ce"], ["'ce' is given twice"]),
        (["digits", "--seeds", "0"], ["--seeds", "0 is too few", "1 or more"]),
        (["digits", "--epochs", "many"], ["--epochs", "valid integer"]),
        (["digits", "--picture", "a.jpg"], ["'a.jpg' must end in .png or .svg"]),
        (["digits", "--out", os.devnull], ["--out", "null"]),
        (["digits", "--features", "resnet18", "--keep-models"], ["--keep-models", "is no model of images"]),
        (["digits", "--small"], ["--small", "is no folder or list of images"]),
        (["digits", "--small", "--features", "resnet18"], ["--small, --features", "give one"]),
        (["digits", "digits"], ["'digits' is given 2 times"]),
        (["digits", "--tune", "0"], ["--tune", "0 is too few"]),
        (["digits", "--metric", "acuracy"], ["'acuracy' is not a metric", "'accuracy'?"]),
        (["digits", "--margin", "-0.5"], ["-0.5 is no margin", "finite number above 0"]),
        (["digits", "--margin", "inf"], ["inf is no margin", "finite number above 0"]),
        (["digits", "--margin", "nan"], ["nan is no margin", "finite number above 0"]),
        (["digits", "--on", "cloud"], ["--on", "'local', 'ray', 'slurm'"]),
        (["digits", "--gpus-per-run", "2"], ["--gpus-per-run", "one GPU at most"]),
        (["digits", "--on", "ray", "--workers", "2"], ["--workers", "needs --on local"]),
        (["digits", "--slurm", "time=60"], ["--slurm", "needs --on slurm, not local"]),
        (["digits", "--on", "slurm", "--slurm", "time"], ["--slurm", "'time' is not KEY=VALUE"]),
    ],
)
def test_bad_input_is_refused_with_a_remedy(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["cyclofocal", "compare", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    said = re.sub(r"[\s│]+", " ", capsys.readouterr().err)
    for word in words:
        assert word in said
    assert not list(tmp_path.iterdir())


def test_without_the_extra_it_says_how_to_install(monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name in ("scipy", "typer") else object())
    with pytest.raises(SystemExit, match=re.escape("needs scipy, typer. From a clone: pip install '.[lab]'")):
        cli.main()


def test_a_list_of_names_longer_than_a_path_can_be_is_a_list(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["cyclofocal", "compare", ",".join(f"nothing{n}" for n in range(99))])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "nothing0" in capsys.readouterr().err


def test_stored_records_are_reused(tmp_path):
    first = ["digits", "--losses", "ce,focal", "--seeds", "2", "--epochs", "1", "--out", str(tmp_path / "first")]
    assert invoke(first).exit_code == 0
    for file in (tmp_path / "first").glob("*/*/record.jsonl"):
        with (tmp_path / "all.jsonl").open("a") as records:
            records.write(file.read_text())
    again = ["digits", "--losses", "ce,focal,cyclical", "--seeds", "2", "--epochs", "1"]
    result = invoke([*again, "--reuse", str(tmp_path / "all.jsonl"), "--out", str(tmp_path / "second")])
    assert result.exit_code == 0
    assert "4 of 4 stored runs belong to this comparison" in result.output
    assert "6 runs, 4 of them finished before" in result.output
    other = invoke([*again[:-1], "2", "--reuse", str(tmp_path / "all.jsonl"), "--out", str(tmp_path / "third")])
    assert "0 of 4 stored runs belong" in other.output
    (tmp_path / "no.csv").write_text("a,b\n1,2\n")
    nothing = invoke([*again, "--reuse", str(tmp_path / "no.csv")])
    assert nothing.exit_code == 2
    assert "no record in" in nothing.output


def test_an_unknown_model_is_refused_before_any_run(tmp_path):
    result = invoke(["digits", "--set", "model=small-convnt", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "model is 'small-convnt'" in result.output
    assert not list(tmp_path.iterdir())


def invoke(arguments):
    return CliRunner().invoke(app, ["compare", *arguments], env={"COLUMNS": "200"})
