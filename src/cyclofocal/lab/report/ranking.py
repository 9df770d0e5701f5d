"""Rank losses over many data sets and test whether they differ."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cyclofocal.lab.metrics import Metric
from cyclofocal.lab.report.statistics import ALPHA, TOLERANCE
from cyclofocal.lab.report.summary import PairedComparison, Summary, common_primary

MIN_DATA_SETS = 5
"""Minimum for a conclusion; below it Friedman's statistic is far from its chi-squared distribution."""


@dataclass(frozen=True)
class WinTieLoss:
    """Number of data sets on which the mean of a loss is better than, equal to and worse than the reference's.

    Attributes:
        better, worse: number of significant wins and losses; None where no data set has enough seeds for any.
    """

    wins: int
    ties: int
    losses: int
    better: int | None
    worse: int | None


@dataclass(frozen=True)
class Ranking:
    """Ranks of losses over data sets, each of which counts once.

    Attributes:
        metric: metric of the ranks.
        reference: title of the reference of ``tallies``.
        data_sets: titles.
        ranks: mean rank by title of the loss, best first; 1 is best, ties share.
        p: p value of no difference between the losses: Friedman's test, Wilcoxon's for two.
        critical_difference: difference of two mean ranks that is significant by Nemenyi's test.
        tallies: wins, ties and losses by title, without the reference.
        notes: losses and data sets left out, as sentences.
    """

    metric: Metric
    reference: str
    data_sets: tuple[str, ...]
    ranks: dict[str, float]
    p: float
    critical_difference: float
    tallies: dict[str, WinTieLoss]
    notes: tuple[str, ...]

    @property
    def enough(self) -> bool:
        return len(self.data_sets) >= MIN_DATA_SETS

    def counts(self, loss: str) -> tuple[int | None, ...]:
        """Wins, ties, losses, significantly better and significantly worse; None where a count does not exist."""
        tally = self.tallies.get(loss)
        if tally is None:
            return (None,) * 5
        return tally.wins, tally.ties, tally.losses, tally.better, tally.worse

    def significant_pairs(self) -> list[tuple[str, str]]:
        """Pairs of losses that differ significantly, the better one first."""
        if not self.enough or self.p >= ALPHA:
            return []
        every = list(self.ranks.items())
        return [
            (one, other)
            for place, (one, rank) in enumerate(every)
            for other, worse in every[place + 1 :]
            if worse - rank >= self.critical_difference
        ]


def ranking(summaries: Sequence[Summary]) -> Ranking | None:
    """Rank losses over experiments; None with fewer than two experiments or two shared losses.

    The ranked losses are those of at least half of the experiments, on the experiments that have them all; if these are
    fewer than two, the losses that every experiment has.

    Reference: J. Demšar, *Statistical Comparisons of Classifiers over Multiple Data Sets*, JMLR 2006.
    """
    tables = [{row.loss: row for row in summary.of_metric(summary.primary)} for summary in summaries]
    having = {loss: sum(loss in table for table in tables) for loss in dict.fromkeys(itertools.chain(*tables))}
    losses = [loss for loss, count in having.items() if 2 * count >= len(tables)]
    complete = [place for place, table in enumerate(tables) if all(loss in table for loss in losses)]
    if len(complete) < 2:
        losses = [loss for loss, count in having.items() if count == len(tables)]
        complete = list(range(len(tables)))
    if len(complete) < 2 or len(losses) < 2:
        return None
    metric = common_primary(summaries)
    means = np.array([[tables[place][loss].estimate.mean for loss in losses] for place in complete])
    mean_ranks = rank_rows(means if metric.higher_is_better else -means).mean(0)
    ranks = {losses[index]: float(mean_ranks[index]) for index in np.argsort(mean_ranks, kind="stable")}
    reference = next((summary.reference for summary in summaries if summary.reference), "")
    return Ranking(
        metric=metric,
        reference=reference,
        data_sets=tuple(summaries[place].experiment.title for place in complete),
        ranks=ranks,
        p=difference_p(means),
        critical_difference=critical_difference(len(losses), len(complete)),
        tallies={
            loss: _tally([found for s in summaries for found in s.compared(metric) if found.loss == loss], metric)
            for loss in ranks
            if reference and loss != reference
        },
        notes=_left_out(summaries, complete, losses),
    )


def rank_rows(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks within each row, 1 for the highest; ties share the mean of theirs.

    Example:
        >>> rank_rows(np.array([[0.9, 0.8, 0.8]])).tolist()
        [[1.0, 2.5, 2.5]]
    """
    from scipy import stats

    return stats.rankdata(-np.round(scores, 9), axis=1)


def difference_p(scores: NDArray[np.float64]) -> float:
    """P value of no difference between columns: Friedman's test, or Wilcoxon's signed-rank test for two columns."""
    from scipy import stats

    scores = np.round(scores, 9)
    if (scores == scores[:, :1]).all():
        return 1.0
    if scores.shape[1] == 2:
        return float(stats.wilcoxon(scores[:, 0], scores[:, 1]).pvalue)
    return float(stats.friedmanchisquare(*scores.T).pvalue)


def critical_difference(losses: int, data_sets: int) -> float:
    r"""Nemenyi's critical difference of mean ranks at level 0.05.

    .. math:: q_{0.05,k} \sqrt{k (k + 1) / (6 N)}, \qquad q = \text{studentised range} / \sqrt 2

    Example:
        >>> round(critical_difference(losses=5, data_sets=30), 3)  # q = 2.728
        1.114
    """
    from scipy import stats

    q = stats.studentized_range.ppf(1 - ALPHA, losses, math.inf) / math.sqrt(2)
    return float(q * math.sqrt(losses * (losses + 1) / (6 * data_sets)))


def _tally(compared: Sequence[PairedComparison], metric: Metric) -> WinTieLoss:
    sign = 1 if metric.higher_is_better else -1
    gains = [sign * comparison.estimate.mean for comparison in compared]
    verdicts = [comparison.verdict for comparison in compared]
    testable = any(verdict != "too few seeds" for verdict in verdicts)
    return WinTieLoss(
        wins=sum(gain > TOLERANCE for gain in gains),
        ties=sum(abs(gain) <= TOLERANCE for gain in gains),
        losses=sum(gain < -TOLERANCE for gain in gains),
        better=verdicts.count("significantly better") if testable else None,
        worse=verdicts.count("significantly worse") if testable else None,
    )


def _left_out(summaries: Sequence[Summary], complete: Sequence[int], losses: Sequence[str]) -> tuple[str, ...]:
    notes = []
    if absent := [s.experiment.title for place, s in enumerate(summaries) if place not in complete]:
        notes.append(f"Not ranked, because a loss is missing: {'; '.join(absent)}.")
    others = dict.fromkeys(row.loss for s in summaries for row in s.rows if row.loss not in losses)
    if others:
        notes.append(f"Not ranked, because some data sets do not have it: {', '.join(others)}.")
    sources = [(s.recipe["source"], s.recipe.get("subset"), s.recipe.get("imbalance")) for s in summaries]
    if len(set(sources)) < len(sources):
        notes.append("Some experiments use the same data but are counted as independent.")
    return tuple(notes)
