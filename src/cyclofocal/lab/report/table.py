"""Tables as plain data, and their renderers for the terminal, Markdown, LaTeX and CSV; page.html has the fifth."""

import csv
import io
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import rich.table

MARK_STYLES = {
    **{"better": "bold green", "worse": "bold red", "own": "bold green", "reference": "bold", "heading": "italic"},
    "": "",
}
WORD_WIDTH = 13  # characters of "significantly"; longer words of a text may be broken
HEADING_WIDTH = 10  # characters; shorter headings of numbers are not wrapped
MARK_SIGNS = {"better": "+", "worse": "-"}

TEX = str.maketrans(
    {c: rf"\{c}" for c in "#$%&_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"<": "$<$", ">": "$>$", "|": r"\textbar{}", "–": "--"}
)


@dataclass(frozen=True)
class Column:
    """Heading of a column and kind of its cells: text is left-aligned and may wrap, numbers are right-aligned."""

    heading: str
    kind: Literal["text", "number"] = "number"


@dataclass(frozen=True)
class TableCell:
    """Cell of a table.

    Attributes:
        text: main text.
        detail: an interval or a difference, after the text or below it.
        key: number that the cell is sorted by.
        mark: "better" or "worse" for a significant difference, which numbers show by a sign, bold type or a triangle;
            "own" or "reference" for a loss to find at a glance, by bold type alone; "heading" of rows apart.
        link: address on the page.
    """

    text: str
    detail: str = ""
    key: float | None = None
    mark: str = ""
    link: str = ""

    @property
    def full_text(self) -> str:
        """Text and detail on one line."""
        return f"{self.text} {self.detail}".rstrip()


NONE = TableCell("–")


@dataclass(frozen=True)
class ReportTable:
    """Title, columns, rows with one cell per column, short notes, and rows apart, which follow under a heading."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[TableCell]]
    notes: Sequence[str] = ()
    apart: Sequence[Sequence[TableCell]] = ()
    apart_heading: str = ""

    def transposed(self, heading: str) -> "ReportTable":
        """Exchange rows and columns; ``heading`` names the new first column."""
        columns = [Column(heading, "text"), *(Column(row[0].text) for row in self.rows)]
        names = (TableCell(column.heading) for column in self.columns[1:])
        cells = zip(*(row[1:] for row in self.rows), strict=True)
        return ReportTable(
            self.title, columns, [[name, *row] for name, row in zip(names, cells, strict=True)], self.notes
        )


def to_terminal(*tables: ReportTable, title: str = "", details: bool = True, tight: bool = False) -> "rich.table.Table":
    """Table for rich's console; several tables that share their columns become its sections.

    Args:
        tables: at least one.
        title: of the whole; default: that of the first table.
        details: show the details of the cells.
        tight: leave no padding and no indentation, so that five columns fit 80 characters.
    """
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table as RichTable

    shown = RichTable(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 0 if tight else 1))
    shown.title, shown.title_style, shown.title_justify = escape(title or tables[0].title), "bold", "left"
    parts = list(map(_with_heading, tables))
    texts = [[_terminal_texts(row, tables[0].columns, details) for row in rows] for rows in parts]
    for place, column in enumerate(tables[0].columns):
        _add_column(shown, column, [row[place] for rows in texts for row in rows])
    for table, rows in zip(tables, texts, strict=True):
        if len(tables) > 1:
            shown.add_row(f"[bold]{escape(table.title)}[/]", *(f"[dim]{escape(note)}[/]" for note in table.notes))
        for place, (row, cells) in enumerate(zip(_with_heading(table), rows, strict=True)):
            styled = [_styled(escape(text), cell.mark) for text, cell in zip(cells, row, strict=True)]
            first = Padding.indent(styled[0], 2) if len(tables) > 1 and not tight else styled[0]
            shown.add_row(first, *styled[1:], end_section=len(tables) > 1 and place == len(rows) - 1)
    return shown


def _with_heading(table: ReportTable) -> list[Sequence[TableCell]]:
    """All rows, with a line of the heading before those apart."""
    if not table.apart:
        return [*table.rows]
    heading = [TableCell(table.apart_heading, mark="heading"), *(TableCell("") for _ in table.columns[1:])]
    return [*table.rows, heading, *table.apart]


def _terminal_texts(row: Sequence[TableCell], columns: Sequence[Column], details: bool) -> list[str]:
    return [
        (cell.full_text if details else cell.text) + (MARK_SIGNS.get(cell.mark, "") if column.kind == "number" else "")
        for cell, column in zip(row, columns, strict=True)
    ]


def _add_column(shown: "rich.table.Table", column: Column, cells: Sequence[str]) -> None:
    """Wrap text at spaces, and the heading of numbers to the width of their cells, which stay whole."""
    from rich.markup import escape

    if column.kind == "text":
        longest_word = max((len(word) for cell in cells for word in cell.split()), default=1)
        shown.add_column(escape(column.heading), min_width=min(longest_word, WORD_WIDTH), overflow="fold")
        return
    width = max(HEADING_WIDTH, *map(len, (*column.heading.split(), *cells)))
    heading = textwrap.fill(column.heading, width, break_on_hyphens=False)
    shown.add_column(escape(heading), justify="right", no_wrap=True)


def _styled(text: str, mark: str) -> str:
    return f"[{MARK_STYLES[mark]}]{text}[/]" if mark else text


def to_markdown(table: ReportTable) -> str:
    """Markdown table; marked numbers are bold."""
    rules = ["---" if place == 0 else "---:" for place in range(len(table.columns))]
    rows = [
        [_markdown_cell(cell, column) for cell, column in zip(row, table.columns, strict=True)]
        for row in _with_heading(table)
    ]
    lines = [[escape_markdown(column.heading) for column in table.columns], rules, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def _markdown_cell(cell: TableCell, column: Column) -> str:
    text = escape_markdown(cell.full_text)
    if cell.mark == "heading":
        return f"*{text}*"
    return f"**{text}**" if cell.mark and column.kind == "number" else text


def escape_markdown(text: str) -> str:
    """Escape text that Markdown would take for a tag."""
    return text.replace("<", "&lt;") if re.search(r"<[a-zA-Z/!]", text) else text


def to_latex(*tables: ReportTable, caption: str) -> str:
    r"""Floating table for ``\usepackage{booktabs}``; several tables that share their columns become its sections."""
    columns = tables[0].columns
    lines = [_latex_row(column.heading for column in columns)]
    for table in tables:
        lines.append(r"\midrule")
        if len(tables) > 1:
            lines.append(rf"\multicolumn{{{len(columns)}}}{{l}}{{\emph{{{_latex_text(table.title)}}}}} \\")
        lines += [_latex_row(cell.full_text for cell in row) for row in table.rows]
        if table.apart:
            lines += [r"\midrule", rf"\multicolumn{{{len(columns)}}}{{l}}{{{_latex_text(table.apart_heading)}}} \\"]
            lines += [_latex_row(cell.full_text for cell in row) for row in table.apart]
    alignment = "".join("l" if column.kind == "text" else "r" for column in columns)
    start = [r"\begin{table}", r"\centering", rf"\caption{{{_latex_text(caption)}}}"]
    body = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", *lines, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*start, *body, r"\end{table}", ""])


def _latex_row(texts: Iterable[str]) -> str:
    return " & ".join(map(_latex_text, texts)) + r" \\"


def _latex_text(text: str) -> str:
    return text.translate(TEX)


def to_csv(table: ReportTable) -> str:
    """CSV with a line of headings and one line per row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.heading for column in table.columns)
    writer.writerows([cell.text for cell in row] for row in table.rows)
    return text.getvalue()
