"""Every record below a folder is found once; what is wrong is named by file and line, and the rest is read."""

import json
from dataclasses import asdict, replace

import pytest

from cyclofocal.lab.records import write_record
from cyclofocal.lab.report.load import read_runs
from evidence import grid

RECORDS = list(grid(2))


def lines(records):
    return "".join(json.dumps(asdict(record)) + "\n" for record in records)


def test_folders_are_searched_and_files_of_other_kinds_left_alone(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(RECORDS[:2]))
    run = tmp_path / "runs" / "digits" / "ce-seed0"
    write_record(RECORDS[2], run / "record.jsonl")
    (run / "run.json").write_text("{}")
    (run / "epochs.jsonl").write_text('{"epoch": 0}\n')
    (tmp_path / "runs" / "b.jsonl").write_text(lines(RECORDS[3:4]))
    records, said = read_runs([tmp_path, tmp_path / "a.jsonl"])
    assert sorted((r.loss["name"], r.seed) for r in records) == sorted((r.loss["name"], r.seed) for r in RECORDS[:4])
    assert said == []


def test_unfinished_and_tuning_runs_are_counted(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "run.json").write_text("{}")
    (tmp_path / "t.jsonl").write_text(lines([replace(r, metrics={}) for r in RECORDS[:3]]))
    records, said = read_runs([tmp_path])
    assert records == []
    assert said[0].startswith("1 run was not finished")
    assert said[1].startswith("3 runs were for tuning")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[:100], "not JSON"),
        (lambda text: "7", "not a run record"),
        (lambda text: text.replace('"name": "digits"', '"nome": "digits"', 1), "recipe is"),
        (lambda text: text.replace('"seed": 0', '"seed": "zero"', 1), 'seed is "zero"; it must be a whole number'),
        (lambda text: text.replace('"ece": 0.05', '"ece": "low"', 1), 'metrics hold "low"'),
        (lambda text: text.replace('"ece": 0.05', '"ece": 5.0', 1), "ece is 5; it must be a fraction, in [0, 1]"),
    ],
)
def test_a_damaged_record_is_named_and_the_others_are_read(tmp_path, damage, words):
    first, second, third = lines(RECORDS[:3]).splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join([first, damage(second), third]) + "\n")
    records, (said,) = read_runs([tmp_path])
    assert [record.loss["name"] for record in records] == ["ce", "cyclical"]
    assert said.startswith(f"{tmp_path / 'a.jsonl'}, line 2: ")
    assert words in said


def test_a_number_that_is_none_does_not_cost_the_record(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines([RECORDS[0]]).replace('"ece": 0.05', '"ece": NaN'))
    (record,), said = read_runs([tmp_path])
    assert record.metrics["ece"] != record.metrics["ece"]
    assert said == []


def test_many_lines_of_one_fault_are_told_once(tmp_path):
    (tmp_path / "speed.jsonl").write_text('{"loss": 1}\n' * 84)
    _, (said,) = read_runs([tmp_path])
    assert "84 lines from 1 on: not a run record" in said


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        read_runs([tmp_path / "nowhere"])
