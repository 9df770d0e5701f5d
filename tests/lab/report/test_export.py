"""Promise: terminal, Markdown, CSV and LaTeX tables contain every number of the summary."""

import csv
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from cyclofocal.lab.report.experiment import group_experiments
from cyclofocal.lab.report.export import csv_report, latex_report, markdown_report
from cyclofocal.lab.report.html import page
from cyclofocal.lab.report.ranking import ranking
from cyclofocal.lab.report.result_tables import CSV_COLUMNS, means_over, result_tables, threshold_table
from cyclofocal.lab.report.summary import summaries, summarise
from cyclofocal.lab.report.table import to_terminal
from evidence import binary, data_sets, grid, measured


def printed(summary, columns):
    file = io.StringIO()
    console = Console(file=file, width=columns)
    console.print(to_terminal(*result_tables(summary), tight=columns < 100))
    return file.getvalue()


@pytest.mark.parametrize("columns", [80, 100, 120])
@pytest.mark.parametrize("title", ["cyclical focal", "cyclical focal (gamma_pos 0, gamma_neg 4, gamma_hc 2)"])
def test_the_terminal_table_fits_with_every_number(title, columns):
    records = [replace(r, loss=r.loss | {"title": title}) if r.loss["name"] == "cyclical" else r for r in grid(10)]
    text = printed(summarise(records, "ce"), columns)
    assert max(map(len, text.splitlines())) <= columns
    assert "…" not in text
    assert len(re.findall(r"\d \[.*\] +[+-]?\d.* \[.*\] +(?:–|[+-][\d.]+) +(?:\d\.\d{3}|<0\.001) +\w+", text)) == 18


def test_one_seed_is_a_table_without_intervals():
    assert printed(summarise(list(grid(1)), "ce"), 100).count("[") == 2  # the headings'


def test_csv_has_a_row_per_metric_and_loss_with_all_digits():
    (summary,) = summaries(group_experiments(list(grid(10))))
    rows = list(csv.DictReader(io.StringIO(csv_report([summary]))))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert len(summary.rows) == 27
    for row, text in zip(summary.rows, rows, strict=False):
        assert float(text["mean"]) == pytest.approx(row.estimate.mean, abs=1e-8)
        assert (text["difference"] == "") == (row.comparison is None)
        if row.comparison:
            assert float(text["corrected_p"]) == pytest.approx(row.comparison.corrected_p, abs=1e-8)
    assert {row["role"] for row in rows if row["metric"] == "balanced_accuracy"} == {"primary"}
    of_classes = rows[27:]
    assert {(row["role"], row["metric"]) for row in of_classes} == {("class", "accuracy")}
    found = {(row["class"], row["loss"]): float(row["mean"]) for row in of_classes}
    owl = [r.per_class[2] for r in grid(10) if r.loss["name"] == "cyclical"]
    assert len(found) == len(of_classes) == 9
    assert found["cat", "focal"] == 90
    assert found["owl", "cyclical"] == pytest.approx(100 * sum(owl) / 10, abs=1e-8)


def test_markdown_tables_are_rectangular_with_verdicts():
    found = summaries(group_experiments(list(data_sets(2))))
    text = markdown_report(found, ranking(found))
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        assert len({line.replace(r"\|", "").count("|") for line in block.splitlines()}) == 1
    for words in (
        "## data set 0",
        "## data set 1",
        "significantly better than cross-entropy",
        "mean rank",
        "| owl | 2 | 4 | 8",
    ):
        assert words in text


def test_markdown_has_a_line_for_the_encoding_of_each_column():
    encoded = [replace(r, columns={"age <years>": "number", "town": f"{3 + r.seed} categories"}) for r in grid(2)]
    listed = "**How each column was encoded**\n\n* age &lt;years>: number\n* town: 3 categories; 4 categories\n\n"
    assert listed in markdown_report([summarise(encoded)])
    assert "How each column" not in markdown_report([summarise(list(grid(2)))])


def test_names_of_classes_are_neither_tags_nor_commands():
    odd = [replace(r, classes=["<severe> & |", "50 %_x", "~^"]) for r in grid(2)]
    text = markdown_report([summarise(odd)])
    assert "&lt;severe> & \\|" in text
    assert "<severe>" not in text
    assert r"$<$severe$>$ \& \textbar{} &" in latex_report([summarise(odd)])


def test_ranks_and_problems_are_in_the_files():
    found = summaries(group_experiments(list(data_sets(6))))
    text = markdown_report(found, ranking(found), ["a.jsonl, line 3: not JSON; left out."])
    assert text.startswith("* Use cyclical focal: over 6 data sets")
    assert "\n\n## Left out\n\n* a.jsonl, line 3" in text
    assert "## 6 data sets" in text
    assert "Mean ranks over 6 data sets" in latex_report(found, ranking(found))


def test_latex_is_balanced_and_escaped():
    text = latex_report([summarise(list(grid(10)))])
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert not re.search(r"(?<!\\)[%#_]", text)
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    counts = [line.replace(r"\&", "").count("&") for line in rows]
    assert counts == [5] * 32


def test_csv_has_adjusted_logits_and_confusion():
    (summary,) = summaries(group_experiments(list(measured(grid(10)))))
    rows = list(csv.DictReader(io.StringIO(csv_report([summary]))))
    adjusted = {row["metric"]: row for row in rows if row["role"] == "adjusted"}
    assert float(adjusted["accuracy"]["mean"]) == pytest.approx(
        np.mean([100 * r.metrics["accuracy"] + 2 for r in grid(10) if r.loss["name"] == "ce"])
    )
    against = {row["loss"]: row for row in rows if row["role"] == "against adjusted"}
    assert against.keys() == {"focal", "cyclical"}
    assert float(against["focal"]["difference"]) == pytest.approx(-2)
    counts = {
        (row["class"], row["predicted"]): row["mean"] for row in rows if row["loss"] == "focal" and row["predicted"]
    }
    assert counts["dog", "owl"] == "2.0"
    assert len(counts) == 8  # one of nine is 0


def test_further_metrics_are_in_the_csv_and_not_in_short_tables():
    summary = summarise(list(measured(grid(10))))
    assert {"macro_auroc", "mcc"} <= {row["metric"] for row in csv.DictReader(io.StringIO(csv_report([summary])))}
    titles = [table.title for table in result_tables(summary)]
    assert "MCC" not in titles
    assert "class-wise ECE, %" not in csv_report([summary])  # no record has it
    assert result_tables(summarise(list(measured(grid(10))), metric="mcc"))[0].title == "MCC"
    assert "post-hoc" in printed(summary, 100)


def test_means_at_chosen_thresholds_stand_next_to_those_at_0_5():
    summary = summarise(list(binary(grid(8), gain=0.1)))
    table = threshold_table(summary)
    assert [column.heading for column in table.columns][:3] == [
        "loss",
        "average precision of yes, %",
        "recall of yes, %",
    ]
    place = [column.heading for column in table.columns].index("balanced accuracy, % (tuned)")
    for row in table.rows:
        cell = row[place]
        assert float(cell.detail.strip("()")) == pytest.approx(float(cell.text) + 10, abs=0.11)
    shown = markdown_report([summary])
    assert (
        shown.index("**AUROC, %**") < shown.index(f"**{table.title}**") < shown.index("**average precision of yes, %**")
    )
    assert table.title in page([summary])
    assert not threshold_table(summarise(list(grid(8)))).rows


def test_means_over_experiments_of_two_classes():
    named = {name: [run for run in data_sets(3) if run.recipe["name"] == name] for name in ("set-0", "set-1", "set-2")}
    first, second = list(binary(named["set-0"], auroc=0.7)), list(binary(named["set-1"], auroc=0.9))
    found = summaries(group_experiments([*first, *second, *named["set-2"]]))
    table = means_over(found)
    assert table.title.startswith("Means over 2 data sets of two classes")
    assert [row[0].text for row in table.rows] == ["cross-entropy", "focal", "cyclical focal"]
    runs = [run for run in (*first, *second) if run.loss["name"] == "ce"]
    for cell, key in zip(table.rows[0][1:], ("macro_auroc", "rare_ap", "balanced_accuracy"), strict=False):
        assert float(cell.text) == pytest.approx(100 * np.mean([run.metrics[key] for run in runs]), abs=0.051)
    tuned = 100 * np.mean([run.metrics["tuned_balanced_accuracy"] for run in runs])
    assert float(table.rows[0][3].detail.strip("()")) == pytest.approx(tuned, abs=0.051)
    assert table.title in markdown_report(found)
    assert "of two classes" not in markdown_report(summaries(group_experiments(list(data_sets(3)))))
