"""Records to numbers to words: summaries, rankings, tables, one page."""

from cyclofocal.lab.report.findings import conclusions, explanations, number
from cyclofocal.lab.report.ranking import Ranking, ranking
from cyclofocal.lab.report.summary import PRIMARY, Row, Summary, summaries, summarise
from cyclofocal.lab.report.terminal import table

__all__ = [
    "PRIMARY",
    "Ranking",
    "Row",
    "Summary",
    "conclusions",
    "explanations",
    "number",
    "ranking",
    "summaries",
    "summarise",
    "table",
]
