"""A run killed at any moment resumes with the same call and ends bit-identical to one that was not."""

import hashlib
import io
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cyclofocal.lab.data.dataset import DataSet
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY, CYCLICAL
from cyclofocal.lab.records import RunRecord, read_records, write_record
from cyclofocal.lab.training import checkpoint
from cyclofocal.lab.training import run_folder as runs
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.run_folder import DamagedRunError, RunFolder, RunMismatchError, identity, lock_run
from cyclofocal.lab.training.train import train
from evidence import untimed

RECIPE = replace(
    digits().with_data(validation_images=50),
    epochs=5,
    early_stopping=4,
    warmup_epochs=1,
    augment="crop-flip",
    crop_padding=1,
    mixup=0.3,
    ema_decay=0.9,
    weight_decay_range=(1e-5, 8e-5),
    clock="step",
)

SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from cyclofocal.lab.recipes.loss import CYCLICAL
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.train import train
sys.path[:0] = [{tests!r}, str(Path({tests!r}).parents[1])]
from {module} import RECIPE

left = {calls}
def counted(*args, **kwargs):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

real = {where}
{where} = counted
train(Job(RECIPE, CYCLICAL, 3, Path({folder!r}), RunOptions(cpu=True)))
"""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, go_on(folder)


def go_on(folder):
    return train(Job(RECIPE, CYCLICAL, 3, folder, RunOptions(cpu=True)))


def assert_same(folder, record, whole):
    """Weights, optimiser, clock, moving average and numbers are equal to the last bit."""
    other, expected = whole
    assert untimed(record) == untimed(expected)
    ours, theirs = (checkpoint.load_checkpoint(checkpoint.checkpoints(f)[0]) for f in (folder, other))
    for part in ("model", "optimizer", "criterion", "average"):
        assert_equal(ours[part], theirs[part])
    lines = [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(5))


def assert_equal(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize(
    ("where", "calls", "kept"),
    [
        ("torch.optim.SGD.step", 9 * 2 + 4, 2),  # in the middle of the third epoch
        ("os.fsync", 1 + 1 + 3, 2),  # while the third checkpoint is written: run.json, an empty epochs.jsonl, then it
    ],
    ids=["in a step", "in a checkpoint"],
)
def test_killed(where, calls, kept, tmp_path, whole):
    tests, module = os.path.split(os.path.splitext(__file__)[0])
    code = SCRIPT.format(where=where, calls=calls, folder=str(tmp_path), tests=tests, module=module)
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(checkpoint.checkpoints(tmp_path)) == kept
    assert not (tmp_path / "record.jsonl").exists()
    assert_same(tmp_path, go_on(tmp_path), whole)
    assert not list(tmp_path.glob(".*"))


def interrupt_after(monkeypatch, folder, epochs):
    """Stop a run as Ctrl-C does, at the beginning of an epoch."""
    real = runs.RunFolder.save_epoch

    def save_epoch(self, epoch, content):
        real(self, epoch, content)
        if epoch + 1 == epochs:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs.RunFolder, "save_epoch", save_epoch)
        with pytest.raises(KeyboardInterrupt):
            go_on(folder)


def test_damaged_checkpoint_falls_back_to_the_previous_one(tmp_path, whole, monkeypatch, capsys):
    interrupt_after(monkeypatch, tmp_path, 3)
    newest, older = checkpoint.checkpoints(tmp_path)
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    record = go_on(tmp_path)
    assert f"{newest}: damaged or cut off" in capsys.readouterr().err
    assert older != newest
    assert_same(tmp_path, record, whole)


def test_with_every_checkpoint_damaged_it_begins_again(tmp_path, whole, monkeypatch, capsys):
    interrupt_after(monkeypatch, tmp_path, 2)
    first, second = checkpoint.checkpoints(tmp_path)
    first.write_bytes(first.read_bytes()[:1000])
    second.write_bytes(b"")
    record = go_on(tmp_path)
    said = capsys.readouterr().err
    assert f"{first}: damaged or cut off" in said
    assert f"{second}: not a checkpoint" in said
    assert_same(tmp_path, record, whole)


def test_a_row_without_its_checkpoint_is_cut_off(tmp_path, whole, monkeypatch):
    interrupt_after(monkeypatch, tmp_path, 2)
    with (tmp_path / "epochs.jsonl").open("a") as file:
        file.write('{"epoch": 2, "train_lo')
    assert_same(tmp_path, go_on(tmp_path), whole)


def test_a_finished_run_is_not_run_again(whole, monkeypatch):
    folder, record = whole
    monkeypatch.setattr("cyclofocal.lab.training.loop.fit", None)
    assert go_on(folder) == record
    assert [line for line in read_records(folder / "record.jsonl") if isinstance(line, RunRecord)] == [record]


def test_last_two_checkpoints_stay(whole):
    assert [path.name for path in checkpoint.checkpoints(whole[0])] == ["checkpoint-00004.pt", "checkpoint-00003.pt"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: (replace(RECIPE, epochs=6), CYCLICAL, 3), "epochs: 5 there, 6 now"),
        (lambda: (RECIPE, CROSS_ENTROPY, 3), "'cyclical' there, 'ce' now"),
        (lambda: (RECIPE, CYCLICAL, 4), "seed: 3 there, 4 now"),
    ],
)
def test_another_run_in_the_folder_is_refused(change, words, whole):
    with pytest.raises(RunMismatchError, match=words):
        train(Job(*change(), whole[0], RunOptions(cpu=True)))


def test_a_write_that_fails_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    checkpoint.save_checkpoint(tmp_path, 0, {"rows": [1]})

    def full_disk(descriptor):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="no space"):
            checkpoint.save_checkpoint(tmp_path, 1, {"rows": [1, 2]})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000.pt"]
    assert checkpoint.load_latest(tmp_path) == ({"rows": [1]}, [])


def test_resume_with_changed_data_is_refused(tmp_path, monkeypatch):
    """A checkpoint of the run, then other labels under the same name."""
    recipe, folder = replace(RECIPE, epochs=2), tmp_path / "run"
    train(Job(recipe, CROSS_ENTROPY, 0, folder))
    (folder / "record.jsonl").unlink()
    again = train(Job(recipe, CROSS_ENTROPY, 0, folder))
    assert len(again.epochs) == 2
    (folder / "record.jsonl").unlink()
    monkeypatch.setattr(DataSet, "digest", "0123456789abcdef")
    with pytest.raises(RunMismatchError, match="other data"):
        train(Job(recipe, CROSS_ENTROPY, 0, folder))


@pytest.fixture(scope="module")
def of_seed_4(tmp_path_factory):
    """A run of another seed; its files fit the folder of the first in all but what they say."""
    folder = tmp_path_factory.mktemp("other")
    train(Job(RECIPE, CYCLICAL, 4, folder, RunOptions(cpu=True)))
    return folder


@pytest.fixture
def idle(monkeypatch):
    """No step may be made."""
    monkeypatch.setattr("cyclofocal.lab.training.loop.fit", None)


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("with_run", [True, False], ids=["with run.json", "alone"])
def test_the_record_of_another_run_is_refused_and_left(with_run, tmp_path, whole, of_seed_4):
    if with_run:
        shutil.copy(whole[0] / "run.json", tmp_path)
    shutil.copy(of_seed_4 / "record.jsonl", tmp_path)
    with pytest.raises(RunMismatchError) as error:
        go_on(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'record.jsonl'} is of another run (seed: 4 there, 3 now); move it")
    assert (tmp_path / "record.jsonl").read_bytes() == (of_seed_4 / "record.jsonl").read_bytes()


@pytest.mark.usefixtures("idle")
def test_a_record_without_test_metrics_is_not_a_tested_run(tmp_path, whole):
    record = replace(whole[1], metrics={}, per_class=[], reliability=[], test_counts=[])
    write_record(record, tmp_path / "record.jsonl")
    with pytest.raises(RunMismatchError, match="test: False there"):
        go_on(tmp_path)


@pytest.mark.usefixtures("idle")
def test_the_checkpoint_of_another_run_is_refused_and_left(tmp_path, whole, of_seed_4):
    shutil.copy(whole[0] / "run.json", tmp_path)
    copied = Path(shutil.copy(of_seed_4 / "checkpoint-00004.pt", tmp_path))
    with pytest.raises(RunMismatchError) as error:
        go_on(tmp_path)
    assert str(error.value).startswith(f"{copied} is of another run (seed: 4 there, 3 now)")
    assert copied.exists()


def test_a_checkpoint_that_does_not_say_whose_it_is_is_used(tmp_path, whole, monkeypatch):
    interrupt_after(monkeypatch, tmp_path, 3)
    content = checkpoint.load_checkpoint(checkpoint.checkpoints(tmp_path)[0])
    del content["run"]
    checkpoint.save_checkpoint(tmp_path, 2, content)
    assert_same(tmp_path, go_on(tmp_path), whole)


def signed(payload):
    """A file with the header of a checkpoint, whatever is in it."""
    return checkpoint._HEADER + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


def saved(content):
    payload = io.BytesIO()
    torch.save(content, payload)
    return payload.getvalue()


def changed(**parts):
    """Content of the second epoch's checkpoint but for some parts."""
    return CONTENT | {"rows": TWO_ROWS} | parts


class Foreign:
    def __reduce__(self):
        return os.system, ("exit 1",)


PARTS = ("rows", "seconds", "data", "model", "optimizer", "criterion", "average")
ROW = {"epoch": 0, "train_loss": 1.5, "clip_norm": None, "seconds": 0.1}
CONTENT = {name: {} for name in PARTS[3:]} | {"rows": [ROW], "seconds": 0.1, "data": "0123"}
TWO_ROWS = [ROW, ROW | {"epoch": 1}]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: saved({"rows": Foreign()}), "holds posix.system, and not tensors, numbers and text alone"),
        (lambda: saved({"rows": np.float64(1)}), "scalar, and not tensors, numbers and text alone"),
        (lambda: pickle.dumps({"rows": []}), "torch cannot read it"),
        (lambda: b"PK of no archive", "torch cannot read it"),
        (lambda: b"", "torch cannot read it"),
        (lambda: saved(dict.fromkeys(PARTS[2:], 0)), "no rows and no seconds in it"),
        (lambda: saved([1]), "no average and no criterion and no data"),
        (lambda: saved(changed(run=None)), "run is NoneType; it must be a dictionary"),
        (lambda: saved(changed(run=[1])), "run is list; it must be a dictionary"),
        (lambda: saved(changed(run={1: 2})), "run has a name that is not text"),
        (lambda: saved(changed(run={"seed": torch.zeros(2)})), "run holds what is neither text nor a finite number"),
        (lambda: saved(changed(rows=None)), "rows is not a list of dictionaries of finite numbers"),
        (lambda: saved(changed(rows=["one", "two"])), "rows is not a list of dictionaries of finite numbers"),
        (lambda: saved(changed(rows=[ROW, ROW | {"train_loss": math.nan}])), "rows is not a list of dictionaries of"),
        (lambda: saved(changed(rows=3 * TWO_ROWS)), "it has 6 rows; it must have one of each epoch from 0 to 1"),
        (lambda: saved(changed(rows=[{"epoch": 0}, {"epoch": 1}])), "a row has no seconds"),
        (lambda: saved(changed(model=3)), "model is int; it must be a dictionary"),
        (lambda: saved(changed(seconds=math.inf)), "seconds is inf; it must be finite"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_named(make, words, tmp_path):
    """The one before is used."""
    run = RunFolder(tmp_path, identity(RECIPE, CYCLICAL, 3))
    run.save_epoch(0, CONTENT)
    newest = tmp_path / "checkpoint-00001.pt"
    newest.write_bytes(signed(make()))
    content, (error,) = run.resume(PARTS)
    assert content["rows"] == [ROW]
    assert str(error).startswith(f"{newest}: ")
    assert words in str(error)
    assert "\n" not in str(error)


def test_a_checkpoint_beyond_the_last_epoch_is_not_used(tmp_path):
    run = RunFolder(tmp_path, identity(RECIPE, CYCLICAL, 3))
    checkpoint.save_checkpoint(tmp_path, 14, CONTENT | {"rows": [ROW | {"epoch": epoch} for epoch in range(15)]})
    content, (error,) = run.resume(PARTS)
    assert content is None
    assert str(error).endswith("checkpoint-00014.pt: it is of epoch 14; the last epoch of this run is 4")


def test_a_checkpoint_of_another_model_is_refused(tmp_path, whole, monkeypatch):
    interrupt_after(monkeypatch, tmp_path, 1)
    (path,) = checkpoint.checkpoints(tmp_path)
    content = checkpoint.load_checkpoint(path)
    checkpoint.save_checkpoint(tmp_path, 0, content | {"model": {"weight": torch.zeros(2)}})
    with pytest.raises(DamagedRunError, match="newest checkpoint is of another model") as error:
        go_on(tmp_path)
    assert "\n" not in str(error.value)
    assert path.exists()


@pytest.mark.usefixtures("idle")
@pytest.mark.skipif(os.name != "posix", reason="links")
@pytest.mark.parametrize("target", [None, "nowhere/at/all", "itself"])
@pytest.mark.parametrize("name", ["run.json", "epochs.jsonl", "record.jsonl", "checkpoint-00002.pt", "lock"])
def test_something_else_in_the_place_of_a_file_is_named(name, target, tmp_path):
    """Before any work; it is left as it is."""
    path = tmp_path / name
    if target is None:
        path.mkdir()
    else:
        path.symlink_to(name if target == "itself" else target)
    kind = "a link that leads nowhere" if target else "a folder"
    with pytest.raises(DamagedRunError) as error, lock_run(tmp_path):
        go_on(tmp_path)
    assert str(error.value).startswith(f"{path}: {kind}, where a run has a file; move or remove it")
    assert os.path.lexists(path)
    assert path.is_symlink() == (target is not None)


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b'{"recipe": {"na', "not JSON; it may have been cut off"),
        ("{'caf\xe9': 1}".encode("latin-1"), "not JSON"),
        (b'{"caf\xe9": 1}', "not JSON"),
        (b"[1, 2]", "not a dictionary"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_damaged_run_json_is_named_and_left(content, words, tmp_path):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(DamagedRunError) as error:
        go_on(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'run.json'}: {words}")
    assert "restore it, or remove the folder" in str(error.value)
    assert (tmp_path / "run.json").read_bytes() == content


def test_only_temporary_files_of_a_killed_process_are_removed(tmp_path):
    run = RunFolder(tmp_path, identity(RECIPE, CYCLICAL, 3))
    for name in (".record.jsonl-12.tmp", ".checkpoint-00001.pt-0a1b2c3d.tmp"):
        (tmp_path / name).touch()
    for name in (".notes.tmp", ".record.jsonl-mine", "run.json.tmp"):
        (tmp_path / name).touch()
    (tmp_path / ".epochs.jsonl-3.tmp").mkdir()
    run.resume()
    left = {path.name for path in tmp_path.iterdir()} - {"run.json", "epochs.jsonl"}
    assert left == {".notes.tmp", ".record.jsonl-mine", "run.json.tmp", ".epochs.jsonl-3.tmp"}


def test_an_unfinished_file_takes_no_name_in_use(tmp_path, monkeypatch):
    """A folder or a link under the name that a process of this number would once have taken is left alone."""
    (tmp_path / "precious").write_text("mine")
    (tmp_path / f".record.jsonl-{os.getpid()}.tmp").symlink_to("precious")
    (tmp_path / f".run.json-{os.getpid()}.tmp").mkdir()
    run = RunFolder(tmp_path, identity(RECIPE, CYCLICAL, 3))
    run.finish(RunRecord({}, {}, 0, {}, "cpu", [], [], {}, 1.0))
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / "record.jsonl").is_file()
