"""Promise: one table has the same cells in the terminal, Markdown, LaTeX and CSV."""

import io

import pytest
from rich.console import Console

from cyclofocal.lab.report.table import NONE, Column, ReportTable, TableCell, to_csv, to_latex, to_markdown, to_terminal

TABLE = ReportTable(
    "results",
    [Column("loss_name", "text"), Column("mean accuracy in %")],
    [
        [TableCell("a | b"), TableCell("71.2", "[70.1, 72.4]", 71.2, mark="better")],
        [TableCell("<i>"), NONE],
    ],
    notes=["higher is better"],
)


def printed(*tables, width=80, **options):
    file = io.StringIO()
    console = Console(file=file, width=width)
    console.print(to_terminal(*tables, **options))
    return file.getvalue()


def test_markdown():
    assert to_markdown(TABLE).splitlines() == [
        "| loss_name | mean accuracy in % |",
        "| --- | ---: |",
        r"| a \| b | **71.2 [70.1, 72.4]** |",
        "| &lt;i> | – |",
    ]


def test_latex():
    text = to_latex(TABLE, caption="50 %")
    assert r"\caption{50 \%}" in text
    assert r"\begin{tabular}{lr}" in text
    assert "loss\\_name & mean accuracy in \\% \\\\\n\\midrule\na \\textbar{} b & 71.2 [70.1, 72.4] \\\\" in text
    assert r"\multicolumn{2}{l}{\emph{results}} \\" in to_latex(TABLE, TABLE, caption="")


def test_csv():
    assert to_csv(TABLE) == "loss_name,mean accuracy in %\na | b,71.2\n<i>,–\n"


def test_terminal():
    text = printed(TABLE)
    assert "results" in text
    assert "71.2 [70.1, 72.4]+" in text
    assert "72.4" not in printed(TABLE, details=False)
    assert "higher is better" not in text
    assert printed(TABLE, TABLE, title="both").count("higher is better") == 2


@pytest.mark.parametrize("width", [30, 80])
def test_numbers_stay_whole_on_the_terminal(width):
    assert "71.2 [70.1, 72.4]+" in printed(TABLE, width=width)


def test_long_words_are_broken_and_not_cut_on_the_terminal():
    word = "significantlybetterthanalltheothers"
    rows = [[TableCell(word), TableCell("71.2 [70.1, 72.4]")]]
    text = printed(ReportTable("", TABLE.columns, rows), width=35)
    assert "…" not in text
    assert "".join(line[:15].strip() for line in text.splitlines()[-3:]).endswith(word[-5:])


def test_a_loss_to_find_at_a_glance_has_no_sign():
    text = printed(ReportTable("", TABLE.columns, [[TableCell("ours", mark="own"), TableCell("0.60", mark="own")]]))
    assert "0.60" in text
    assert "+" not in text


def test_transposed():
    turned = TABLE.transposed("metric")
    assert [column.heading for column in turned.columns] == ["metric", "a | b", "<i>"]
    assert [[cell.text for cell in row] for row in turned.rows] == [["mean accuracy in %", "71.2", "–"]]
