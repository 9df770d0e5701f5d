"""Promise: a record survives the disk, appears whole or not at all, and damage is named by file and line."""

import copy
import gzip
import json
import os
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from cyclofocal.lab import records
from cyclofocal.lab.hashes import content_hash
from cyclofocal.lab.records import DamagedRecordError, RunRecord, read_records, write_record
from evidence import grid, measured

RECORD = RunRecord(
    recipe={"name": "digits", "title": "digits", "source": "digits", "epochs": 1, "learning_rate": 0.1},
    loss={"name": "ce", "title": "cross-entropy"},
    seed=3,
    versions={"torch": "2.6"},
    device="cpu",
    train_counts=[5, 2],
    epochs=[{"epoch": 0, "eta": None, "train_loss": 0.5}],
    metrics={"accuracy": 1 / 3, "few": None},
    seconds=1.5,
)


def test_round_trip(tmp_path):
    write_record(RECORD, tmp_path / "a.jsonl")
    write_record(replace(RECORD, seed=4), tmp_path / "b.jsonl")
    assert list(read_records(tmp_path)) == [RECORD, replace(RECORD, seed=4)]
    assert list(read_records(tmp_path / "a.jsonl")) == [RECORD]
    assert (tmp_path / "a.jsonl").read_text().count("\n") == 1


def test_a_packed_file_is_read(tmp_path):
    line = json.dumps(asdict(RECORD)) + "\n"
    (tmp_path / "many.jsonl.gz").write_bytes(gzip.compress(2 * line.encode()))
    assert list(read_records(tmp_path / "many.jsonl.gz")) == [RECORD, RECORD]


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("", ""),
        ("cyclofocal compare digits", "balanced_accuracy"),
        ("cyclofocal compare digits --metric nll --seeds 6", "nll"),
        ("cyclofocal compare digits --metric=ece", "ece"),
    ],
)
def test_old_records_name_the_primary_metric_by_command(tmp_path, command, key):
    content = asdict(RECORD) | {"command": command}
    del content["primary_metric"]
    (tmp_path / "old.jsonl").write_text(json.dumps(content) + "\n")
    assert list(read_records(tmp_path)) == [replace(RECORD, command=command, primary_metric=key)]
    write_record(replace(RECORD, command=command, primary_metric="brier"), tmp_path / "old.jsonl")
    assert next(read_records(tmp_path)).primary_metric == "brier"


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    write_record(RECORD, path)

    def full_disk(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(records.os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_record(replace(RECORD, seed=9), path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
    assert list(read_records(path)) == [RECORD]


def test_a_number_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_record(replace(RECORD, metrics={"nll": float("nan")}), tmp_path / "a.jsonl")
    assert not list(tmp_path.iterdir())


def test_a_damaged_line_is_named_and_the_others_are_read(tmp_path):
    path = tmp_path / "many.jsonl"
    good = json.dumps(asdict(RECORD))
    path.write_text(f'{good}\n{good[:40]}\n{{"seed": 1}}\n7\n{good}\n')
    first, cut, partial, number, last = read_records(path)
    assert first == last == RECORD
    for line, error in enumerate((cut, partial, number), start=2):
        assert isinstance(error, DamagedRecordError)
        assert f"many.jsonl, line {line}:" in str(error)
    assert "cut off" in str(cut)
    assert "missing ['device', 'epochs'" in str(partial)


def test_an_empty_file_is_named_and_a_missing_one_too(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (error,) = read_records(tmp_path)
    assert "empty.jsonl" in str(error)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(read_records(tmp_path / "nowhere"))


WHOLE = json.loads(json.dumps(asdict(next(measured(grid(1))))))
"""A record that has every field."""

OTHERS = (None, [], [None], ["a"], [[]], {}, {"a": []}, "x", 2.5, True)
"""Every kind of value, some of which fit some fields."""

OF_A_KIND = {
    **dict.fromkeys(("seed", "processes", "threads", "validation_samples"), int),
    **dict.fromkeys(("device", "data", "weights", "command", "system", "primary_metric"), str),
    **dict.fromkeys(("train_counts", "epochs", "epoch_seconds", "per_class", "reliability", "classes"), list),
    **dict.fromkeys(("precision_recall", "data_seconds"), list),
    **dict.fromkeys(("recipe", "loss", "versions", "metrics", "columns"), dict),
    "test_counts": list,
    "confusion": list,
    "adjusted": dict,
    "thresholds": dict,
    "seconds": (int, float),
    **dict.fromkeys(("tau", "temperature", "threshold", "margin"), (int, float, type(None))),
}


def read(tmp_path, *contents):
    """Records and errors of a file with these lines."""
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps(content) + "\n" for content in contents))
    return list(read_records(path))


def test_every_field_of_another_kind_is_named(tmp_path):
    assert OF_A_KIND.keys() == {entry.name for entry in fields(RunRecord)}
    changed = [(name, {**WHOLE, name: other}) for name in OF_A_KIND for other in OTHERS]
    for (name, content), found in zip(changed, read(tmp_path, *(content for _, content in changed)), strict=True):
        kind, other = OF_A_KIND[name], content[name]
        if isinstance(other, kind) and not isinstance(other, bool | list | dict):
            assert isinstance(found, RunRecord), found  # another value of the same kind
        elif isinstance(found, DamagedRecordError):
            assert found.fault.startswith(name), found
            assert "it must " in found.fault or "the test set" in found.fault
        else:  # empty, as in a record of before it was stored
            assert other in ([], {}), (name, other)
            assert name in (
                "epoch_seconds",
                "data_seconds",
                "precision_recall",
                "per_class",
                "reliability",
                "classes",
                "test_counts",
                "versions",
                "columns",
                "confusion",
                "adjusted",
                "thresholds",
            )


def test_the_innermost_wrong_value_is_named(tmp_path):
    cases = {
        ("recipe", "epochs"): ("ten", 'recipe.epochs is "ten"; it must be a whole number'),
        ("recipe", "source"): (None, "recipe.source is null; it must be text"),
        ("recipe", "clip_norm"): ({}, "recipe.clip_norm is {}; it must be a number or null"),
        ("recipe", "milestones"): ([1, "2"], 'recipe.milestones[1] is "2"; it must be a whole number'),
        ("recipe", "temperature_range"): ([1.0], "recipe.temperature_range is [1.0]; it must be a list of 2 or null"),
        ("recipe", "groups", "many_from"): ([], "recipe.groups.many_from is []; it must be a whole number"),
        ("loss", "trials"): (None, "loss.trials is null; it must be a whole number"),
        ("versions", "torch"): (2.6, "versions.torch is 2.6; it must be text"),
        ("train_counts", 1): (2.5, "train_counts[1] is 2.5; it must be a whole number"),
        ("epochs", 3, "eta"): ([0], "epochs[3].eta is [0]; it must be a number or null"),
        ("epochs", 2): (None, "epochs[2] is null; it must be a dictionary"),
        ("reliability", 14, 0): ("50", 'reliability[14][0] is "50"; it must be a number'),
        ("reliability", 3): ([1, 2], "reliability[3] is [1, 2]; it must be three numbers"),
        ("per_class", 0): (1.5, "per_class is [1.5, 0.8"),
        ("test_counts", 0): (-1, "test_counts is [-1, 46, 4]; it must not be negative"),
        ("confusion", 0): ([1, 2], "confusion[0] has 2 entries; it must have 3, as train_counts has"),
        ("confusion", 0, 1): (-1, "confusion holds a negative number"),
        ("confusion", 0, 2): (0.5, "confusion[0][2] is 0.5; it must be a whole number"),
        ("adjusted", "accuracy"): (1.5, "adjusted.accuracy is 1.5; it must be a fraction, in [0, 1]"),
        ("temperature",): (-1.0, "temperature is -1; it must not be negative"),
        ("metrics", "nll"): (1e200, "metrics.nll is 1e+200; it must be at most 1e+100"),
    }
    contents = []
    for path, (value, _) in cases.items():
        contents.append(copy.deepcopy(WHOLE))
        place = contents[-1]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
    for error, (_, words) in zip(read(tmp_path, *contents), cases.values(), strict=True):
        assert isinstance(error, DamagedRecordError)
        assert error.fault.startswith(words)


@pytest.mark.parametrize("name", ["classes", "per_class", "test_counts", "epoch_seconds", "reliability", "confusion"])
@pytest.mark.parametrize("change", [lambda found: found[:-1], lambda found: [*found, found[0]]], ids=["short", "long"])
def test_a_list_of_another_length_is_named(tmp_path, name, change):
    found, whole = read(tmp_path, {**WHOLE, name: change(WHOLE[name])}, WHOLE)
    assert found.fault.startswith(f"{name} has {len(change(WHOLE[name]))} entries; it must have {len(WHOLE[name])}, ")
    assert isinstance(whole, RunRecord)


def test_what_a_dataclass_has_no_default_for_is_missed(tmp_path):
    recipe = {name: value for name, value in WHOLE["recipe"].items() if name != "source"}
    newer = {**WHOLE["recipe"], "of_a_later_version": [1]}
    missing, wrong_groups, later = read(
        tmp_path,
        {**WHOLE, "recipe": recipe},
        {**WHOLE, "recipe": {**WHOLE["recipe"], "groups": {"name": "a", "many_from": 1, "few_up_to": 9}}},
        {**WHOLE, "recipe": newer},
    )
    assert missing.fault.endswith("it must have source")
    assert wrong_groups.fault.startswith("recipe.groups is ")
    assert wrong_groups.fault.endswith("0 <= few_up_to < many_from must hold")
    assert later.recipe == newer


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"seconds": NaN', "seconds is NaN; its numbers must be finite"),
        ('"seconds": 1e999', "seconds is Infinity; its numbers must be finite"),
        ('"seconds": 2.0, "seed": 1' + "0" * 400, "Integer exceeds 64-bit range"),
        ('"seconds": "\\ud800"', "surrogates not allowed"),
        ('"seconds": ' + "[" * 100_000, "recursion"),
        ('"seconds": 2.0, "device": "\xff"', "not UTF-8 (byte "),
    ],
)
def test_what_json_can_hold_and_a_record_cannot_is_named(tmp_path, text, words):
    good = json.dumps(WHOLE)
    bad = good.replace('"seconds": 2.0', text, 1)
    assert bad != good
    (tmp_path / "a.jsonl").write_bytes(f"{good}\n{bad}\n{good}\n".encode("latin-1"))
    first, error, last = read_records(tmp_path / "a.jsonl")
    assert first == last
    assert (error.line, words in error.fault) == (2, True), error


def test_a_line_ends_at_its_end(tmp_path):
    """Other tools leave letters as they are, some of which end a line of Python's text."""
    (tmp_path / "a.jsonl").write_text(json.dumps({**WHOLE, "data": "a\u2028b\x85"}, ensure_ascii=False) + "\n")
    (found,) = read_records(tmp_path / "a.jsonl")
    assert found.data == "a\u2028b\x85"


def link_to_itself(path):
    path.symlink_to(path)


UNREADABLE = {
    "a folder": Path.mkdir,
    "a link that leads nowhere": lambda path: path.symlink_to("nowhere"),
    "a link that leads nowhere, ": link_to_itself,
    "no regular file": lambda path: os.mkfifo(path),
    "cannot be read (Not a gzipped file": lambda path: path.write_bytes(b"{}"),
    "cannot be read (Compressed file ended": lambda path: path.write_bytes(gzip.compress(b"{}" * 99)[:-9]),
    "cannot be read (Error -3": lambda path: path.write_bytes(gzip.compress(b"ab" * 99)[:12] + b"x" * 40),
    "empty": lambda path: path.write_bytes(gzip.compress(b"")),
}


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
@pytest.mark.parametrize("words", UNREADABLE)
def test_what_is_no_file_of_records_is_named(words, tmp_path):
    path = tmp_path / "a.jsonl.gz"
    UNREADABLE[words](path)
    if path.is_dir():
        path = path.rename(tmp_path / "b.jsonl").parent
    (error,) = read_records(path)
    assert str(error).startswith(f"{error.file}: {words.split(',')[0]}")


RESULTS = Path(__file__).parents[2] / "results"


def test_every_record_of_the_project_is_whole():
    files = [path for path in sorted(RESULTS.glob("*.jsonl*")) if path.name != "speed.jsonl"]
    assert len(files) > 10
    for path in files:
        assert [line for line in read_records(path) if isinstance(line, DamagedRecordError)] == []


def test_a_run_is_named_by_all_that_decides_its_numbers():
    cell = ({"name": "digits", "epochs": 3}, {"name": "ce", "gamma_pos": 0.0}, 1, {"torch": "2.6"})
    assert content_hash(cell) == content_hash([dict(reversed(cell[0].items())), *cell[1:]])
    others = [
        ({"name": "digits", "epochs": 4}, *cell[1:]),
        (cell[0], {"name": "ce", "gamma_pos": 1.0}, *cell[2:]),
        (*cell[:2], 2, cell[3]),
        (*cell[:3], {"torch": "2.7"}),
    ]
    assert len({content_hash(other) for other in [cell, *others]}) == 5
