"""A record survives the disk, appears whole or not at all, and damage is named by file and line."""

import gzip
import json
from dataclasses import asdict, replace

import pytest

from cyclofocal.lab import records
from cyclofocal.lab.records import DamagedRecordError, RunRecord, content_hash, read_records, write_record

RECORD = RunRecord(
    recipe={"name": "digits"},
    loss={"name": "ce"},
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
