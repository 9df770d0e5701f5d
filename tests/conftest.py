import os

import pytest
import torch
from hypothesis import settings

from cyclofocal import kernels

os.environ.setdefault("KERAS_BACKEND", "torch")  # read when keras is imported; its own default is tensorflow

settings.register_profile("suite", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=["native", "plain"])
def backend(request, monkeypatch):
    """Run a test on each backend of the CPU, and skip it with the reason if there is no native library."""
    if request.param == "native" and kernels.describe()["native"] != "available":
        pytest.skip(f"native: {kernels.describe()['native']}")
    monkeypatch.setattr(kernels, "forced_backend", request.param)
    return request.param


@pytest.fixture(scope="module")
def one_thread():
    """Run a module on one thread: the number of threads changes the last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
