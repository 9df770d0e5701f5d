"""Subsets keep the images that the published rules keep: against plain loops, and by hash on the real labels.

The hashes of CIFAR run where ``CYCLOFOCAL_DATA`` (or ``data/``) holds it, or its training labels alone as
``cifar10_train_labels.npz``; those of fashion-mnist where Debian's package is installed.
"""

import functools
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclofocal.lab.data import fashion_mnist as idx
from cyclofocal.lab.data import subsets
from cyclofocal.lab.messages import MissingDataError
from formats import load

ROOT = Path(os.environ.get("CYCLOFOCAL_DATA", "data"))
LABELS = {classes: np.random.default_rng(classes).permutation(np.arange(50_000) % classes) for classes in (10, 100)}


def _kept(subset, labels, classes):
    return subsets.first_of_each_class(labels, subsets.subset_counts(subset, classes))


def _scan(labels, counts):
    """Pass over the labels once and keep an image while its class wants more."""
    left, kept = list(counts), []
    for i, label in enumerate(labels):
        if left[label] > 0:
            left[label] -= 1
            kept.append(i)
    return kept


@pytest.mark.parametrize(
    ("subset", "classes", "ratio"),
    [
        ("5_3", 10, 1.58),
        ("6_2", 10, 2.64),
        ("5_3", 100, 1.61),
        ("6_2", 100, 2.86),
        ("balanced-4000", 10, 1),
        ("imbalanced-4000", 10, 3),
    ],
)
def test_a_named_set_is_4000_images_in_one_scan(subset, classes, ratio):
    counts = subsets.subset_counts(subset, classes)
    assert sum(counts) == 4000
    assert max(counts) / min(counts) == pytest.approx(ratio, abs=0.005)
    kept = _kept(subset, LABELS[classes], classes)
    assert kept.tolist() == _scan(LABELS[classes], counts)
    assert tuple(np.bincount(LABELS[classes][kept])) == counts


def test_counts_of_the_paper():
    assert subsets.subset_counts("5_3", 10) == (490, 470, 450, 430, 410, 390, 370, 350, 330, 310)
    assert subsets.subset_counts("6_2", 10) == (580, 540, 500, 460, 420, 380, 340, 300, 260, 220)
    assert [subsets.subset_counts("5_3", 100)[c] for c in (0, 1, 2, 89, 90, 99)] == [50, 50, 49, 32, 33, 31]
    assert [subsets.subset_counts("6_2", 100)[c] for c in (0, 1, 5, 79, 80, 99)] == [60, 59, 58, 28, 29, 21]


def test_the_released_list_is_one_off():
    released = subsets.released_5_3(LABELS[10], 10)
    assert (released - 1).tolist() == _scan(LABELS[10], [490 - 20 * c for c in range(10)])


def _long_tailed(labels, classes, imbalance):
    """As published: numpy's global generator, one shuffle per class, in order."""
    state = np.random.get_state()
    np.random.seed(0)
    kept = []
    for c in range(classes):
        members = np.where(labels == c)[0]
        np.random.shuffle(members)
        kept += members[: int(len(labels) / classes * (1 / imbalance) ** (c / (classes - 1.0)))].tolist()
    np.random.set_state(state)
    return kept


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("imbalance", [10, 50, 100, 200])
def test_the_long_tail_is_the_published_one(classes, imbalance):
    state = np.random.get_state()[1].tolist()
    kept = subsets.long_tailed(LABELS[classes], classes, imbalance)
    assert kept.tolist() == _long_tailed(LABELS[classes], classes, imbalance)
    assert np.random.get_state()[1].tolist() == state


@pytest.mark.parametrize(
    ("classes", "imbalance", "images"),
    [(10, 10, 20431), (10, 50, 13996), (10, 100, 12406), (100, 10, 19573), (100, 50, 12608), (100, 100, 10847)],
)
def test_long_tails_have_their_published_sizes(classes, imbalance, images):
    assert len(subsets.long_tailed(LABELS[classes], classes, imbalance)) == images


@pytest.mark.parametrize(("classes", "head_images"), [(10, 4800), (100, 480)])
def test_a_smaller_head_keeps_the_first_of_each_class(classes, head_images):
    labels = LABELS[classes]
    whole, part = (subsets.long_tailed(labels, classes, 100, head) for head in (0, head_images))
    for c in range(classes):
        kept = part[labels[part] == c].tolist()
        assert kept == whole[labels[whole] == c].tolist()[: len(kept)]
        assert len(kept) == int(head_images * 0.01 ** (c / (classes - 1)))


def test_a_long_tail_may_have_a_smaller_head():
    kept = subsets.long_tailed(LABELS[10], 10, 50, head_images=100)
    assert np.bincount(LABELS[10][kept]).tolist() == [100, 64, 41, 27, 17, 11, 7, 4, 3, 2]


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), data=st.data())
def test_held_out_images_are_as_even_as_the_classes_allow(labels, data):
    labels = np.array(labels)
    available = np.array(sorted(data.draw(st.sets(st.integers(0, len(labels) - 1), min_size=1))))
    count = data.draw(st.integers(1, len(available)))
    chosen = subsets.class_balanced(labels, available, count)
    assert len(set(chosen.tolist())) == count
    assert set(chosen) <= set(available)
    taken, offered = (np.bincount(labels[indices], minlength=5) for indices in (chosen, available))
    could_give_more = taken < offered
    if could_give_more.any():
        assert taken.max() <= taken[could_give_more].min() + 1
    assert chosen.tolist() == subsets.class_balanced(labels, available, count).tolist()


def test_impossible_subsets_are_refused():
    with pytest.raises(ValueError, match="'6_2' does not exist for 7 classes"):
        subsets.subset_counts("6_2", 7)
    with pytest.raises(ValueError, match="class 0 has 400 images; 490 are needed"):
        _kept("5_3", LABELS[10][:4000].copy() * 0 + np.arange(4000) % 10, 10)
    with pytest.raises(ValueError, match=r"needs 4,000 training images; there are 3999"):
        subsets.first_4000(LABELS[10][:3999])
    with pytest.raises(ValueError, match="exists for 10 classes; there are 100"):
        subsets.released_5_3(LABELS[100], 100)
    with pytest.raises(ValueError, match="class 9 has 2 images; 3 are"):
        subsets.long_tailed(np.array([*np.repeat(np.arange(9), 9), 9, 9]), 10, 3, head_images=9)
    with pytest.raises(ValueError, match="validation_images is 4; only 3"):
        subsets.class_balanced(LABELS[10], np.arange(3), 4)


@functools.cache
def _cifar_labels(classes):
    alone = ROOT / f"cifar{classes}_train_labels.npz"
    if alone.is_file():
        return np.load(alone)["labels"].astype(np.int64)
    try:
        return load(f"cifar{classes}", root=ROOT).train.labels
    except MissingDataError as error:
        pytest.skip(str(error))


def _digest(indices):
    return hashlib.sha256(np.asarray(indices, dtype="<i8").tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("classes", "subset", "digest"),
    [
        (10, "5_3", "3a3f1040a7d0f233"),
        (10, "6_2", "4ee1914bdd668d8a"),
        (10, "5_3-released", "8685a265bc7631db"),
        (100, "5_3", "717b15f6abf37411"),
        (100, "6_2", "4af605798a547a3f"),
        (10, "long-tailed 10", "a17d69f192b1cf6d"),
        (10, "long-tailed 50", "d7edcfaf02772bee"),
        (10, "long-tailed 100", "4bf45bff8878d278"),
        (10, "long-tailed 200", "a88004a1d1361093"),
        (100, "long-tailed 10", "b4fbf1bf0a7f3338"),
        (100, "long-tailed 50", "561fa940cc7d3551"),
        (100, "long-tailed 100", "e0d58a4d2700c460"),
        (100, "long-tailed 200", "2f00ccd33da379d5"),
    ],
)
def test_indices_of_the_real_cifar(classes, subset, digest):
    labels = _cifar_labels(classes)
    if subset == "5_3-released":
        kept = subsets.released_5_3(labels, classes)
    elif subset.startswith("long-tailed"):
        kept = subsets.long_tailed(labels, classes, float(subset.split()[1]))
    else:
        kept = _kept(subset, labels, classes)
    assert _digest(kept) == digest


def test_counts_of_the_real_cifar():
    first = np.bincount(_cifar_labels(10)[subsets.first_4000(_cifar_labels(10))])
    assert first.tolist() == [396, 366, 420, 384, 422, 393, 414, 385, 407, 413]
    released = np.bincount(_cifar_labels(10)[subsets.released_5_3(_cifar_labels(10), 10)])
    assert released.tolist() == [400, 367, 423, 392, 412, 394, 408, 385, 410, 409]
    hundred = np.bincount(_cifar_labels(100)[subsets.first_4000(_cifar_labels(100))])
    assert (hundred.min(), hundred.max()) == (26, 59)


@pytest.mark.parametrize(
    ("subset", "settings", "digest"),
    [
        ("balanced-4000", {}, "433f02924732439e"),
        ("imbalanced-4000", {}, "ba7d6590511a98b5"),
        ("long-tailed", {"imbalance": 100, "head_images": 5000}, "1796d394cb814bab"),
    ],
)
def test_indices_of_the_real_fashion_mnist(subset, settings, digest):
    if not idx.DEBIAN.is_dir():
        pytest.skip("needs `apt install dataset-fashion-mnist`")
    data = load("fashion-mnist", root=Path("/nowhere"), subset=subset, validation_images=1000, **settings)
    assert np.bincount(data.validation.labels).tolist() == [100] * 10
    assert not set(data.validation.positions) & set(data.train.positions)
    assert _digest([*data.train.positions, *data.validation.positions]) == digest
