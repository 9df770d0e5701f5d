"""The commands train, store, resume and refuse; `cyclofocal recipes` lists all recipes."""

import errno
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclofocal.lab import cli
from cyclofocal.lab.metrics import TUNED
from cyclofocal.lab.oltr.evaluation import evaluate_file
from cyclofocal.lab.recipes.catalogue import RECIPES
from cyclofocal.lab.recipes.resolve import check_name
from cyclofocal.lab.records import read_records

QUICK = ("--set", "epochs=2", "--cpu")


@pytest.fixture
def lab(monkeypatch, capsys, tmp_path):
    """Run a command in an empty folder; its exit code, output and messages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cyclofocal", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capsys.readouterr()
        return stop.value.code, said.out, re.sub(r"[\s│]+", " ", said.err)

    return run


def test_reproduce_stores_runs_and_does_not_repeat_them(lab, tmp_path):
    command = ("reproduce", "digits", "--loss", "ce,cyclical", "--seeds", 2, *QUICK)
    code, out, err = lab(*command)
    assert code == 0, err
    folders = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "runs" / "digits").iterdir())
    assert folders == ["ce-seed0", "ce-seed1", "cyclical-seed0", "cyclical-seed1"]
    records = [next(iter(read_records(path))) for path in (tmp_path / "runs").glob("*/*/record.jsonl")]
    assert {(record.loss["name"], record.seed) for record in records} == {
        (name, seed) for name in ("ce", "cyclical") for seed in (0, 1)
    }
    assert all(record.command.startswith("cyclofocal reproduce digits --loss ce,cyclical") for record in records)
    assert "digits ce seed 0: epoch 2/2, loss" in err
    assert "differences to cross-entropy" in out

    code, again, err = lab(*command)
    assert (code, again.replace(" (ended before, not run again)", "")) == (0, out)
    assert again.count("not run again") == 4
    assert "epoch" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "digits", *QUICK),
        ("reproduce", "digits", *QUICK),
        ("compare", "digits", "--epochs", 2, "--seeds", 1, "--losses", "ce,cyclical", "--workers", 1),
    ],
)
def test_unreached_focal_phase_is_warned_of_first(lab, arguments):
    _, _, err = lab(*arguments)
    said = "cyclical focal on digits: eta is 1 in both epochs, so its focal phase is never met"
    assert said in err.partition("epoch 1/2")[0]
    assert err.count("focal phase") == 1


def test_a_damaged_record_is_named_and_the_run_runs_again(lab, tmp_path):
    assert lab("train", "digits", *QUICK)[0] == 0
    (path,) = (tmp_path / "runs").glob("*/*/record.jsonl")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "metrics": {"nll": "low"}}))
    code, again, err = lab("train", "digits", *QUICK)
    assert code == 0, err
    assert f"damaged record, will run again: {path.relative_to(tmp_path)}, line 1: metrics.nll is" in err
    assert "not run again" not in again
    assert json.loads(path.read_text())["metrics"] == content["metrics"]


def test_a_record_of_another_seed_stops_the_command_in_a_line(lab, tmp_path):
    for seed in (0, 1):
        assert lab("train", "digits", "--seed", seed, *QUICK)[0] == 0
    first, second = sorted((tmp_path / "runs" / "digits").iterdir())
    (first / "record.jsonl").write_bytes((second / "record.jsonl").read_bytes())
    code, _, err = lab("train", "digits", *QUICK)
    assert code == 1
    assert "record.jsonl is of another run (seed: 1 there, 0 now); move it out of this folder" in err
    assert "Traceback" not in err


def test_a_full_disk_stops_the_command_in_a_line(lab, monkeypatch):
    real = Path.mkdir

    def full(self, *arguments, **options):
        if self.name.startswith("cyclical-seed0"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        real(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", full)
    code, _, err = lab("train", "digits", *QUICK)
    assert code == 1
    assert re.search(r"stopped: runs/digits/cyclical-seed0-\w+: No space left on device; fix this", err), err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_report_on_a_full_disk_ends_in_a_line(lab, tmp_path):
    records = Path(__file__).parents[3] / "results" / "fashion-mnist.jsonl"
    (tmp_path / "page.tex").symlink_to("/dev/full")
    code, _, _ = lab("report", records, "-o", "page.tex")
    assert "No space left on device; fix this and run the same command again" in code
    assert "\n" not in code


def test_tensorboard_writes_into_the_folder_of_the_run(lab, tmp_path):
    pytest.importorskip("tensorboard")
    code, _, err = lab("train", "digits", "--tensorboard", *QUICK)
    assert code == 0, err
    (events,) = (tmp_path / "runs").glob("digits/cyclical-seed0-*/digits/events.out.tfevents.*")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(events.parent)).Reload()
    for name in ("train_loss", "train_accuracy", "eta", "learning_rate"):
        assert [event.step for event in log.Scalars(name)] == [0, 1]


def picture_folder(root, *, seed=0):
    rng = np.random.default_rng(seed)
    for split, images in (("train", 6), ("val", 2), ("test", 3)):
        for name, level in (("dark", 60), ("light", 180)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(images):
                pixels = np.clip(rng.normal(level, 20, size=(20, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


SMALL = ("--model", "small-resnet", "--set", "width=4", "--set", "image_size=16", "--set", "batch_size=4", *QUICK)


def test_custom_image_folder_is_trained(lab, tmp_path):
    code, out, err = lab("train", "--data", picture_folder(tmp_path / "pictures"), "--loss", "ce", *SMALL)
    assert code == 0, err
    assert "warning" not in err
    (path,) = (tmp_path / "runs").glob("pictures/ce-seed0-*/record.jsonl")
    (record,) = read_records(path)
    assert record.train_counts == [6, 6]
    assert 0 <= record.epochs[-1]["validation_accuracy"] <= 1
    assert "cross-entropy, seed 0: AUROC" in out


def test_a_table_is_trained_on_by_its_target(lab, tmp_path):
    rows = [f"{i % 7},{i % 5},{'yes' if i % 3 else 'no'}" for i in range(60)]
    (tmp_path / "people.csv").write_text("\n".join(["a,b,kind", *rows]))
    command = ("train", "--data", "people.csv", "--set", "target=kind", "--loss", "ce", *QUICK)
    for again in ("", " (ended before, not run again)"):
        code, out, err = lab(*command)
        assert code == 0, err
        assert out.endswith(f"{again}\n")
    (path,) = (tmp_path / "runs").glob("people/ce-seed0-*/record.jsonl")
    (record,) = read_records(path)
    assert (record.recipe["model"], record.recipe["target"], len(record.recipe["digest"])) == ("mlp", "kind", 16)
    assert record.primary_metric == "macro_auroc"
    assert record.thresholds.keys() == {"balanced_accuracy", "f1", "mcc"}
    assert record.threshold == record.thresholds["f1"]
    again = evaluate_file(path.parent / "predictions.npz").numbers
    assert {key: again[key] for key in TUNED} == {key: record.metrics[key] for key in TUNED}
    (tmp_path / "people.csv").write_text("\n".join(["a,b,kind", *rows, "1,1,no"]))
    assert "not run again" not in lab(*command)[1]


def test_copies_in_a_custom_folder_are_warned_of(lab, tmp_path):
    pictures = picture_folder(tmp_path / "pictures")
    shutil.copy(pictures / "train" / "dark" / "0.png", pictures / "test" / "light" / "0.png")
    code, _, err = lab("train", "--data", pictures, "--loss", "ce", *SMALL)
    assert code == 0, err
    copy = f"{pictures}/test/light/0.png{{}} = {pictures}/train/dark/0.png{{}}"
    assert (
        f"warning: {pictures}: 1 of 6 test images are training images too, byte for byte: {copy.format('', '')}" in err
    )
    assert f"1 image is of two classes: {copy.format(' (class light)', ' (class dark)')}" in err


@pytest.mark.parametrize("command", ["train --data", "compare"])
def test_folders_that_are_not_read_are_warned_of(lab, tmp_path, command):
    pictures = picture_folder(tmp_path / "pictures")
    (pictures / "test").rename(pictures / "holdout")
    small = ["--set", "model=small-resnet", *SMALL[2:-1]]
    small += ["--seeds", "1", "--losses", "ce,focal"] if command == "compare" else ["--cpu"]
    code, _, err = lab(*command.split(), pictures, *small)
    assert code == 0, err
    assert err.count(f"warning: {pictures}: not read, for their names are no splits: holdout; call") == 1


def test_an_unreadable_picture_is_named(lab, tmp_path):
    pictures = picture_folder(tmp_path / "pictures")
    broken = pictures / "train" / "dark" / "3.png"
    broken.write_bytes(broken.read_bytes()[:100])
    code, _, err = lab("train", "--data", pictures, *SMALL)
    assert code == 1
    assert str(broken) in err


def test_recipes_are_listed(lab):
    code, out, _ = lab("recipes")
    assert code == 0
    for name in RECIPES:
        assert re.search(rf"^{re.escape(name)} ", out, re.MULTILINE), name
    for words in ("not yet run", "cyclofocal reproduce imagenet", "cyclofocal compare digits", "tresnet_m"):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reproduce", "cifar"], ["'cifar' is not a recipe", "cifar10-lt-100", "Did you mean 'cifar10"]),
        (["reproduce", "digits", "--loss", "focus"], ["'focus' is not a loss", "Did you mean 'focal'?"]),
        (["reproduce", "digits", "--seeds", "0"], ["0 is too few"]),
        (["reproduce", "digits", "--set", "epoch=3"], ["--set", "'epoch' is not a field", "'epochs'?"]),
        (["reproduce", "digits", "--set", "epochs=x"], ["--set", "epochs is 'x'; it must be a whole number"]),
        (["reproduce", "digits", "--tracker", "wanbd"], ["'wanbd' is not a tracker", "'wandb'?"]),
        (["train"], ["either the name of a recipe or --data"]),
        (["train", "digits", "--data", "."], ["not both"]),
    ],
)
def test_bad_arguments_are_refused_before_any_work(lab, tmp_path, arguments, words):
    code, _, err = lab(*arguments)
    assert code == 2
    for word in words:
        assert word in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "digits"],
        ["train", "--data", "digits"],
        ["train", "digits"],
        ["train", "digits", "--set", "source=digits"],
        ["reproduce", "own-lt", "--set", "source=digits"],
        ["reproduce", "own-lt", "--set", "1:source=digits"],
    ],
)
def test_a_name_that_a_folder_of_images_has_too_is_refused(lab, tmp_path, arguments):
    (tmp_path / "digits" / "cat").mkdir(parents=True)
    (tmp_path / "digits" / "cat" / "0.png").touch()
    code, _, err = lab(*arguments)
    assert code == 2
    assert "'digits' is a name that cyclofocal knows" in err
    assert "give ./digits for these images" in err
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


@pytest.mark.parametrize("target", ["loop", "nowhere"])
def test_a_link_that_leads_nowhere_is_called_so(lab, tmp_path, target):
    (tmp_path / "loop").symlink_to(target)
    code, _, err = lab("compare", "loop")
    assert code == 2
    assert "loop: a link that leads to no file or folder" in err
    assert "Did you mean" not in err


def test_names_with_one_meaning_are_not_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits" / "ce-seed0-0123").mkdir(parents=True)
    (tmp_path / "digits" / "ce-seed0-0123" / "run.json").touch()
    check_name("digits")  # runs of an earlier command with --out .
    (tmp_path / "digits" / "0.jpg").touch()
    check_name("./digits")
    (tmp_path / "imagenet" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "imagenet" / "train" / "cat" / "0.JPEG").touch()
    check_name("imagenet", root=Path())  # the published one
    for name, root in (("digits", Path()), ("imagenet", Path("data"))):
        with pytest.raises(ValueError, match=f"give ./{name} for these images"):
            check_name(name, root)


def test_tables_and_other_folders_named_like_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    check_name("digits")  # empty
    (tmp_path / "digits" / "notes.txt").touch()
    with pytest.warns(
        UserWarning, match=r"'digits' is taken for what cyclofocal knows by this name; the folder .* not read"
    ):
        check_name("digits")
    (tmp_path / "digits" / "people.csv").touch()
    with pytest.raises(ValueError, match=r"there are tables at .*digits; give ./digits/people.csv for that table"):
        check_name("digits")


def test_a_folder_that_is_not_read_is_warned_of_by_the_commands(lab, tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "notes.txt").touch()
    for command in (("train", "digits"), ("compare", "digits", "--losses", "ce,focal")):
        code, _, err = lab(*command, "--set", "epochs=0")
        assert code == 2
        assert "'digits' is taken for what cyclofocal knows" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--data", "nowhere"], ["nowhere", "no such folder or file"]),
        (["train", "digits", "--model", "resnet180"], ["model is 'resnet180'", "did you mean 'resnet18"]),
        (["reproduce", "cifar10-fast", "--root", "here"], ["cifar", "here"]),
        (["train", "digits", "--set", "learning_rate=1e30"], ["the training loss is nan in epoch 0, step"]),
        (["train", "digits", "--set", "precision=fp16", "--cpu"], ["fp16"]),
        (["train", "digits", "--tracker", "comet_ml"], ["comet_ml is not installed"]),
    ],
)
def test_errors_are_reported_in_one_line(lab, arguments, words):
    code, _, err = lab(*arguments, "--cpu")
    assert code == 1
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_stop_explains_how_to_resume(lab, monkeypatch):
    from cyclofocal.lab.training import run_folder as runs

    real = runs.RunFolder.save_epoch

    def stop(self, epoch, content):
        real(self, epoch, content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs.RunFolder, "save_epoch", stop)
        code, _, err = lab("train", "digits", *QUICK)
    assert code == 130
    assert "is saved; the same command resumes" in err
    code, _, err = lab("train", "digits", *QUICK)
    assert code == 0
    assert "epoch 1/2" not in err
    assert "epoch 2/2" in err
