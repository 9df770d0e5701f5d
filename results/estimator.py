"""Compare CyclicalFocalClassifier with MLPClassifier of scikit-learn, both at their defaults, on ten real tables.

``python results/estimator.py`` prints the tables of docs/sklearn.md. Five folds and three seeds, the same for all; the
fits of one fold follow each other in one process and on one core, and their CPU times are given as ratios.

The defaults were chosen on the first five tables; the others were not looked at before.
"""

import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cyclofocal.integrations.sklearn import CyclicalFocalClassifier
from cyclofocal.lab.data.keel import keel_path, read_keel

CHOSEN_ON = ("breast_cancer", "keel:yeast4", "keel:winequality-red-4", "keel:vehicle1", "keel:page-blocks")
CONFIRMED_ON = (
    "wine",
    "digits",
    "keel:segment0",
    "keel:yeast-0-5-6-7-9_vs_4",
    "keel:winequality-red-8_vs_6-7",
)
SCIKIT_LEARN = {"breast_cancer": load_breast_cancer, "digits": load_digits, "wine": load_wine}
PEER = "MLPClassifier"
DEFAULT = "default"
CANDIDATES: dict[str, Any] = {
    PEER: MLPClassifier,
    DEFAULT: CyclicalFocalClassifier,
    '`loss="ce"`': lambda **seed: CyclicalFocalClassifier(loss="ce", **seed),
    '`loss="focal"`': lambda **seed: CyclicalFocalClassifier(loss="focal", **seed),
    "`gamma_hc=3`": lambda **seed: CyclicalFocalClassifier(gamma_hc=3.0, **seed),
}
SEEDS, FOLDS = 3, 5
AUROC, NLL, SECONDS = range(3)


def read(name: str) -> tuple[Any, Any]:
    """Return features and class indices of a table."""
    if name in SCIKIT_LEARN:
        x, y = SCIKIT_LEARN[name](return_X_y=True)
    else:
        table = read_keel(keel_path(name.removeprefix("keel:")), name)
        x, y = table.features.to_numpy(), table.labels
    return x, np.unique(y, return_inverse=True)[1]


def folds(x: Any, y: Any) -> Iterator[tuple[int, Any, Any]]:
    for seed in range(SEEDS):
        for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, y):
            yield seed, train, test


def measure(name: str) -> dict[str, Any]:
    """Return AUROC, NLL and CPU seconds of a fit, for every candidate and fold."""
    (x, y), found = read(name), defaultdict(list)
    for seed, train, test in folds(x, y):
        for candidate, make in CANDIDATES.items():
            model = make_pipeline(StandardScaler(), make(random_state=seed))
            start = time.process_time()
            model.fit(x[train], y[train])
            seconds = time.process_time() - start
            p = model.predict_proba(x[test])
            auroc = roc_auc_score(y[test], p[:, 1] if p.shape[1] == 2 else p, multi_class="ovr")
            found[candidate].append((auroc, log_loss(y[test], p), seconds))
    return {candidate: np.array(rows) for candidate, rows in found.items()}


def row(name: str, found: dict[str, Any]) -> str:
    """Return the row of a table: means of both, and the 95 % interval of the paired differences."""
    ours, peer = found[DEFAULT], found[PEER]
    cells = [
        f"{ours[:, column].mean():.3f} | {peer[:, column].mean():.3f} | {gap(ours, peer, column)}" for column in (0, 1)
    ]
    return f"| {name} | {' | '.join(cells)} | {seconds_ratio(ours, peer):.2f} |"


def gap(ours: Any, peer: Any, column: int) -> str:
    """Return mean and standard error over folds, corrected for their common training rows (Nadeau and Bengio)."""
    difference = ours[:, column] - peer[:, column]
    error = (difference.var(ddof=1) * (1 / len(difference) + 1 / (FOLDS - 1))) ** 0.5
    return f"{difference.mean():+.3f} ± {error:.3f}"


def seconds_ratio(ours: Any, peer: Any) -> float:
    return float(np.median(ours[:, SECONDS] / peer[:, SECONDS]))


def summary(candidate: str, found: dict[str, dict[str, Any]]) -> str:
    """Return a candidate's mean difference of AUROC, and its geometric mean ratios of NLL and time."""
    pairs = [(table[candidate], table[PEER]) for table in found.values()]
    auroc = np.mean([ours[:, AUROC].mean() - peer[:, AUROC].mean() for ours, peer in pairs])
    nll = np.exp(np.mean([np.log(ours[:, NLL].mean() / peer[:, NLL].mean()) for ours, peer in pairs]))
    seconds = np.exp(np.mean([np.log(seconds_ratio(ours, peer)) for ours, peer in pairs]))
    return f"| {candidate} | {auroc:+.3f} | {nll:.2f} | {seconds:.2f} |"


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    CyclicalFocalClassifier(max_epochs=1).fit(np.eye(2), [0, 1])  # the first fit loads libraries
    found = {}
    for name in (*CHOSEN_ON, *CONFIRMED_ON):
        found[name] = measure(name)
        print(row(name, found[name]), flush=True)
    for title, names in (("chosen on", CHOSEN_ON), ("confirmed on", CONFIRMED_ON)):
        print(f"\n{title}")
        for candidate in list(CANDIDATES)[1:]:
            print(summary(candidate, {name: found[name] for name in names}))


if __name__ == "__main__":
    main()
