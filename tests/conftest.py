import os

import pytest
import torch
import torch.distributed as dist
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


DESTROYED = []
"""Process groups of past tests: torch 2.6 can deadlock where it frees a group right after an exchange."""


@pytest.fixture
def process_group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    DESTROYED.append(dist.group.WORLD)
    dist.destroy_process_group()
