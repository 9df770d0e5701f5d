"""Promise: every record below a folder is found once; problems are named by file and line."""

import copy
import json
import os
import random
from dataclasses import asdict, replace

import jinja2
import pytest
from rich.console import Console

from cyclofocal.lab.records import DamagedRecordError, RunRecord, read_records, write_record
from cyclofocal.lab.report.experiment import group_experiments
from cyclofocal.lab.report.export import csv_report, latex_report, markdown_report
from cyclofocal.lab.report.html import page
from cyclofocal.lab.report.load import read_runs
from cyclofocal.lab.report.ranking import ranking
from cyclofocal.lab.report.result_tables import result_tables
from cyclofocal.lab.report.summary import summaries
from cyclofocal.lab.report.table import to_terminal
from evidence import grid

RECORDS = list(grid(2))


def lines(records):
    return "".join(json.dumps(asdict(record)) + "\n" for record in records)


def test_folders_are_searched_for_records_alone(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(RECORDS[:2]))
    run = tmp_path / "runs" / "digits" / "ce-seed0"
    write_record(RECORDS[2], run / "record.jsonl")
    (run / "run.json").write_text("{}")
    (run / "epochs.jsonl").write_text('{"epoch": 0}\n')
    (tmp_path / "runs" / "b.jsonl").write_text(lines(RECORDS[3:4]))
    records, said = read_runs([tmp_path, tmp_path / "a.jsonl"])
    assert sorted((r.loss["name"], r.seed) for r in records) == sorted((r.loss["name"], r.seed) for r in RECORDS[:4])
    assert said == []


def test_the_record_of_another_run_is_named_and_left_out(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        record = replace(RECORDS[0], seed=1)
        write_record(record, tmp_path / name / "record.jsonl")
        (tmp_path / name / "run.json").write_text(json.dumps({"recipe": record.recipe, "seed": seed}))
    records, (said,) = read_runs([tmp_path])
    assert len(records) == 1
    path = tmp_path / "a" / "record.jsonl"
    assert (
        said
        == f"{path} is of another run than the run.json next to it (seed: 1 in the record, 0 in run.json); left out."
    )


def test_unfinished_and_tuning_runs_are_counted(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "run.json").write_text("{}")
    untested = {"metrics": {}, "per_class": [], "reliability": [], "test_counts": []}
    (tmp_path / "t.jsonl").write_text(lines([replace(r, **untested) for r in RECORDS[:3]]))
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
        (
            lambda text: text.replace('"ece": 0.05', '"ece": "low"', 1),
            'metrics.ece is "low"; it must be a number or null',
        ),
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


def test_lines_with_one_problem_are_reported_once(tmp_path):
    (tmp_path / "speed.jsonl").write_text('{"loss": 1}\n' * 84)
    _, (said,) = read_runs([tmp_path])
    assert "84 lines from 1 on: not a run record" in said


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        read_runs([tmp_path / "nowhere"])


ABSENT = object()
VALUES = (ABSENT, None, [], [1], ["a"], [[1, 2]], {}, {"a": []}, "", "[/b]", "--metric=none", 3, -1, 2.5, True)
REPORTS = 25
"""Number of changed records that are reported; all are read."""


def places(content, path=()):
    """Paths to all fields, and to the first and the last entry of every list."""
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in entries:
        if isinstance(content, dict) or key in (0, len(content) - 1):
            yield *path, key
            yield from places(value, (*path, key))


def changed(content, path, value):
    content = place = copy.deepcopy(content)
    for key in path[:-1]:
        place = place[key]
    if value is ABSENT:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


def report(records, said):
    """Everything that ``cyclofocal report`` can write."""
    found = summaries(group_experiments(records))
    ranked, console = ranking(found), Console(width=100)
    with console.capture() as shown:
        for summary in found:
            console.print(to_terminal(*result_tables(summary), title=summary.experiment.title))
    pages = (
        page(found, ranked, said),
        markdown_report(found, ranked, said),
        csv_report(found),
        latex_report(found, ranked),
    )
    return found[0], [*pages, shown.get()]


@pytest.fixture
def quick(monkeypatch):
    """The page's template is compiled once."""
    made, real = [], jinja2.Environment

    def once(**options):
        made.extend(() if made else [real(**options)])
        return made[0]

    monkeypatch.setattr(jinja2, "Environment", once)


def test_a_changed_field_is_named_or_reported_as_it_is(tmp_path, quick):
    """Whatever one field of one record holds, there is a report, and the numbers of the others are what they were."""
    *others, last = grid(1)
    whole = asdict(last)
    cases = [(path, value) for path in dict.fromkeys(places(whole)) for value in VALUES]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(changed(whole, *case)) + "\n" for case in cases))
    found = list(zip(cases, read_records(tmp_path / "a.jsonl"), strict=True))
    accepted = [(case, record) for case, record in found if isinstance(record, RunRecord)]
    for (path, value), error in found:
        if isinstance(error, DamagedRecordError):
            assert str(path[0]) in error.fault, (path, value)
            assert "\n" not in str(error)
    assert len(found) - len(accepted) > 1000
    assert len(accepted) > 200

    expected = means(summaries(group_experiments([*others, last]))[0])
    for (path, value), record in random.Random(0).sample(accepted, REPORTS):
        summary, texts = report([*others, record], ["a fault"])
        assert means(summary) == expected, (path, value)
        assert all(text.encode() for text in texts)


def means(summary):
    """Results of the losses whose records were not changed."""
    return {(row.metric.key, row.name): row.estimate.mean for row in summary.rows if row.name in ("ce", "focal")}


@pytest.mark.parametrize("title", ["[/b]", "[red]digits", "[v2] digits"])
def test_brackets_in_a_title_are_no_markup(title):
    _, texts = report([replace(r, recipe={**r.recipe, "title": title}) for r in grid(1)], [])
    assert title in texts[-1]


def test_an_unknown_primary_metric_is_noted():
    summary, texts = report([replace(r, primary_metric="kappa") for r in grid(1)], [])
    assert summary.primary.key == "balanced_accuracy"
    assert "The runs were started with another primary metric, kappa" in texts[0]


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_what_is_no_file_is_named_and_the_rest_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(RECORDS[:2]))
    (tmp_path / "b.jsonl").mkdir()
    (tmp_path / "b.jsonl" / "c.jsonl").write_text(lines(RECORDS[2:3]))
    (tmp_path / "d.jsonl").symlink_to("nowhere")
    (tmp_path / "e.jsonl.gz").write_text(lines(RECORDS[3:4]))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").symlink_to("nowhere")
    (tmp_path / "run" / "record.jsonl").mkdir()
    records, said = read_runs([tmp_path])
    assert len(records) == 3
    for name, words in {
        "b.jsonl": "a folder, where a file of records must be; left out.",
        "d.jsonl": "a link that leads nowhere, where a file of records must be; left out.",
        "e.jsonl.gz": "cannot be read (Not a gzipped file",
        "run/record.jsonl": "a folder, where a file of records must be; left out.",
    }.items():
        assert sum(line.startswith(f"{tmp_path / name}: {words}") for line in said) == 1, said
