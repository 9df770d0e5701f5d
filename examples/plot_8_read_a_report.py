"""
Read a report in Python
=======================

Runs are stored as JSON lines. The functions behind ``cyclofocal report`` read them, compare the
losses paired by seed, and give numbers to work with: here those of long-tailed digits, 20 seeds,
stored in ``results/``.
"""

from pathlib import Path

import matplotlib.pyplot as plt

from cyclofocal.lab.report.answer import answer
from cyclofocal.lab.report.experiment import group_experiments
from cyclofocal.lab.report.load import read_runs
from cyclofocal.lab.report.summary import summaries

folder = next(path for path in (Path("results"), Path("../results")) if path.exists())  # of the repository
records, problems = read_runs([folder / "digits.jsonl"])
[summary] = summaries(group_experiments(records))
print(f"{len(records)} runs of {summary.experiment.title}, {len(problems)} problems")
print("\n".join(answer(summary)))

# %%
# Every comparison holds the differences by seed, their mean with a 95 % interval, p after Holm's
# correction, and a verdict.

compared = summary.compared(summary.primary)
for comparison in compared:
    print(f"{comparison.loss}: p {comparison.corrected_p:.3f}, {comparison.verdict}")

# %%

figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
for line, comparison in enumerate(reversed(compared)):
    axes.scatter(comparison.per_seed, [line] * len(comparison.per_seed), s=12, alpha=0.4, color="tab:blue")
    low, high = comparison.estimate.interval
    axes.plot([low, high], [line, line], color="black", linewidth=2)
    axes.plot(comparison.estimate.mean, line, "o", color="black")
axes.axvline(0, color="grey", linewidth=0.8)
axes.set_yticks(range(len(compared)), [comparison.loss for comparison in reversed(compared)])
axes.set(xlabel="balanced accuracy, difference to cross-entropy (points)", title=summary.experiment.title)
plt.show()
