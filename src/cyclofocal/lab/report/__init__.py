"""Records to numbers to words: summaries, rankings, tables, one page."""

from cyclofocal.lab.report.ranking import Ranking, ranking
from cyclofocal.lab.report.summary import PRIMARY, Row, Summary, summaries, summarise
from cyclofocal.lab.report.terminal import table
from cyclofocal.lab.report.words import conclusions, explanations, number

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
