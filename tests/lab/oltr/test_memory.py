"""The memory holds the mean feature of each class, whatever the batches and processes it came in."""

import pytest
import torch

from cyclofocal.lab.oltr.memory import CentroidMemory

CLASSES, LENGTH = 5, 3


@pytest.fixture
def training():
    labels = torch.cat([torch.arange(CLASSES), torch.randint(CLASSES, (60,))])
    return torch.randn(len(labels), LENGTH) + 100, labels


def means(features, labels):
    rows = [features[labels == c].double() for c in range(CLASSES)]
    return torch.stack([sum(row) / len(row) for row in rows]).float()


def sums_of(share):
    """What a process gives to be added up."""
    given = []
    with pytest.raises(ValueError, match="no feature"):  # the others' share is not there yet
        CentroidMemory(CLASSES, LENGTH).fill(share, lambda own: given.append(own) or torch.zeros_like(own))
    return given[0]


def test_means_by_hand(training):
    memory = CentroidMemory(CLASSES, LENGTH)
    memory.fill([training])
    torch.testing.assert_close(memory.centroids.detach(), means(*training), rtol=1e-7, atol=0)


@pytest.mark.parametrize("size", [1, 7, 65])
def test_batches_change_nothing(training, size):
    features, labels = training
    memory = CentroidMemory(CLASSES, LENGTH)
    memory.fill(zip(features.split(size), labels.split(size), strict=True))
    torch.testing.assert_close(memory.centroids.detach(), means(*training), rtol=1e-7, atol=0)


def test_shares_of_processes_add_up(training):
    features, labels = training
    shares = [[(features[::2], labels[::2])], [(features[1::2], labels[1::2])], []]
    total = sum(map(sums_of, shares))
    for share in shares:
        memory = CentroidMemory(CLASSES, LENGTH)
        memory.fill(share, lambda own: total)
        torch.testing.assert_close(memory.centroids.detach(), means(*training), rtol=1e-7, atol=0)


def test_an_unfilled_memory_gives_no_number(training):
    memory = CentroidMemory(CLASSES, LENGTH)
    assert not memory.filled
    assert memory.centroids.isnan().all()
    memory.fill([training])
    assert memory.filled


def test_a_checkpoint_holds_it(training):
    memory, other = CentroidMemory(CLASSES, LENGTH), CentroidMemory(CLASSES, LENGTH)
    memory.fill([training])
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.centroids, memory.centroids)


def test_a_class_without_image_is_refused(training):
    features, labels = training
    memory = CentroidMemory(CLASSES, LENGTH)
    with pytest.raises(ValueError, match="1 of 5 classes have no feature to fill the memory: 2"):
        memory.fill([(features[labels != 2], labels[labels != 2])])
    assert not memory.filled
