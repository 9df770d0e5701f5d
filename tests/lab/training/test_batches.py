"""Batches and augmentation follow from seed, epoch and index: not from processes, workers, or what came before."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cyclofocal.lab.data.dataset import in_memory, on_demand
from cyclofocal.lab.messages import UnreadableImageError
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.training import batches as loading
from cyclofocal.lab.training import rng
from cyclofocal.lab.training.augment import DRAWS, crop_flip, cutout, epoch_draws
from cyclofocal.lab.training.batches import ImageFileLoader, Shard, build_loader, check_last_batch, epoch_batches
from cyclofocal.lab.training.mixup import build_mixer, mix
from cyclofocal.lab.training.sampler import class_aware_batches

CPU = torch.device("cpu")
CROPPED = replace(digits(), image_size=12, augment="crop-flip", crop_padding=3, cutout=4, batch_size=5)
TIMM = replace(
    digits(), image_size=16, channels=3, augment="timm", auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.6
)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(256, size=(23, 1, 12, 12), dtype=np.uint8))
    return in_memory(pixels, rng.integers(10, size=23), "noise")


def epoch(images, recipe, share=None, seed=1, number=2, workers=0):
    reader = build_loader(images, recipe, CPU, workers, training=True)
    batches = epoch_batches(seed, number, len(images), recipe.batch_size)
    return list(reader.train(batches, share or Shard(), seed, number))


def test_batches_hold_every_image_once():
    batches = epoch_batches(0, 3, 23, 5)
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    assert torch.cat(batches).sort().values.equal(torch.arange(23))


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("size", [5, 6, 17])
def test_shares_are_disjoint_whole_and_hold_pairs(world, size):
    batch = torch.randperm(100)[:size]
    shares = [Shard(rank, world).of(batch) for rank in range(world)]
    assert torch.cat(shares).sort().values.equal(batch.sort().values)
    assert max(map(len, shares)) - min(map(len, shares)) <= 2
    for share in shares:
        places = [batch.tolist().index(i) for i in share]
        assert places == sorted(places)
        assert {size - 1 - place for place in places} == set(places)


def test_a_batch_too_small_for_the_processes_is_refused():
    check_last_batch(276, 32, 2)
    with pytest.raises(
        ValueError, match="batch_size is 25 for 276 images, so the last batch has 1; 2 processes need 3"
    ):
        check_last_batch(276, 25, 2)


@pytest.mark.parametrize("recipe", [CROPPED, replace(TIMM, batch_size=5), replace(TIMM, batch_size=5, aug_splits=3)])
def test_an_image_is_augmented_the_same_in_any_process(images, recipe):
    alone = epoch(images, recipe)
    shared = [epoch(images, recipe, Shard(rank, 2)) for rank in (0, 1)]
    splits = recipe.aug_splits
    for whole, *parts in zip(alone, *shared, strict=True):
        by_index = {}
        for part in parts:
            assert part.total == whole.total == len(whole.images)
            views = part.images.unflatten(0, (splits, -1))
            for place, index in enumerate(part.indices.tolist()):
                by_index[index] = views[:, place]
        together = torch.stack([by_index[index] for index in whole.indices.tolist()], 1).flatten(0, 1)
        assert torch.equal(together, whole.images)
        assert torch.equal(whole.labels, torch.from_numpy(images.labels)[whole.indices].repeat(splits))


@pytest.mark.parametrize("recipe", [CROPPED, TIMM])
def test_workers_change_nothing(images, recipe):
    alone = ImageFileLoader(images, recipe, CPU, 0, training=True)
    helped = ImageFileLoader(images, recipe, CPU, 2, training=True)
    for number in (0, 1):
        batches = epoch_batches(0, number, len(images), 8)
        pairs = zip(alone.train(batches, Shard(), 0, number), helped.train(batches, Shard(), 0, number), strict=True)
        for mine, theirs in pairs:
            assert torch.equal(mine.indices, theirs.indices)
            assert torch.equal(mine.images, theirs.images)


def test_in_memory_and_one_by_one_are_the_same(images):
    batches = epoch_batches(0, 0, len(images), 8)
    quick, slow = (
        build_loader(images, CROPPED, CPU, training=True),
        ImageFileLoader(images, CROPPED, CPU, 0, training=True),
    )
    assert type(quick) is not type(slow)
    for a, b in zip(quick.train(batches, Shard(), 0, 0), slow.train(batches, Shard(), 0, 0), strict=True):
        torch.testing.assert_close(a.images, b.images)
    for a, b in zip(quick.eval_batches(batches), slow.eval_batches(batches), strict=True):
        torch.testing.assert_close(a, b)


class Counted:
    """Images by position that count how often each is decoded."""

    def __init__(self, images):
        self.images, self.reads = images, Counter()

    def read(self, position):
        self.reads[position] += 1
        return self.images.image(position)

    def name(self, position):
        return f"image {position} of {id(self)}"


def test_images_of_every_epoch_are_decoded_once(images, monkeypatch):
    counted, batches = Counted(images), epoch_batches(0, 0, len(images), 8)
    files = on_demand(counted, images.labels, "files")
    for _ in range(2):  # two runs of one process
        quick = build_loader(files, CROPPED, CPU, training=True, every_epoch=True)
        for epoch in range(2):
            slow = build_loader(images, CROPPED, CPU, training=True).train(batches, Shard(), 0, epoch)
            for a, b in zip(quick.train(batches, Shard(), 0, epoch), slow, strict=True):
                torch.testing.assert_close(a.images, b.images)
                assert torch.equal(a.labels, b.labels)
    assert set(counted.reads.values()) == {1}
    assert len(counted.reads) == len(images)
    others = on_demand(Counted(images), images.labels, "others")
    assert type(build_loader(others, TIMM, CPU, training=True, every_epoch=True)) is ImageFileLoader
    monkeypatch.setattr(loading, "MOST_BYTES", 100)
    assert type(build_loader(others, CROPPED, CPU, training=True, every_epoch=True)) is ImageFileLoader


@pytest.mark.parametrize("recipe", [CROPPED, TIMM])
def test_draws_change_with_epoch_and_seed_and_nothing_else(images, recipe):
    def first(seed, number):
        reader = build_loader(images, recipe, CPU, training=True)
        return next(iter(reader.train([torch.arange(9)], Shard(), seed, number))).images

    torch.manual_seed(5)
    now = first(0, 0)
    torch.manual_seed(6)
    assert torch.equal(first(0, 0), now)
    assert not torch.equal(first(0, 1), now)
    assert not torch.equal(first(1, 0), now)


def global_numbers():
    return random.random(), np.random.random(), torch.rand(()).item()


@pytest.mark.parametrize("reseed", [rng.reseed, rng.reseed_cpu])
def test_seeded_numbers_are_those_of_stored_results(reseed):
    stored = pytest.approx((0.01833212112857252, 0.23624450138414366, 0.4785933494567871))
    with rng.seeded(0, rng.AUGMENT, 2, 7):
        assert global_numbers() == stored
    reseed(0, rng.AUGMENT, 2, 7)
    assert global_numbers() == stored


def mixed_epoch(images, recipe):
    for step, batch in enumerate(epoch(images, recipe)):
        mix(build_mixer(replace(recipe, mixup=0.2), 10), batch.images, batch.labels, 0, 0, step)


@pytest.mark.parametrize("recipe", [CROPPED, TIMM])
def test_batches_leave_the_global_random_numbers_alone(images, recipe):
    rng.reseed(5)
    expected = global_numbers()
    rng.reseed(5)
    mixed_epoch(images, recipe)
    assert global_numbers() == expected


@pytest.mark.parametrize("recipe", [CROPPED, TIMM])
def test_batches_reseed_no_gpu(images, recipe, monkeypatch):
    """A GPU's random numbers follow from the epoch alone; without one, to ask for it takes a millisecond an image."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a batch has reseeded the GPU"))
    mixed_epoch(images, recipe)
    class_aware_batches(images.labels, 0, 0, 8)


def test_crops_and_flips_are_those_of_a_plain_loop(images):
    drawn = epoch_draws(CROPPED, 0, 0, len(images))
    found = crop_flip(images.inputs, drawn, padding=3)
    for image, view, (row, column, flip, *_) in zip(images.inputs, found, drawn.tolist(), strict=True):
        wide = np.pad(image[0].numpy(), 3)
        top, left = int(row * 7), int(column * 7)
        crop = wide[top : top + 12, left : left + 12]
        assert np.array_equal(view[0].numpy(), crop if flip < 0.5 else crop[:, ::-1])
    assert 0.2 < (drawn[:, 2] < 0.5).float().mean() < 0.8


def test_a_crop_alone_flips_nothing(images):
    recipe = replace(CROPPED, augment="crop")
    drawn, flipped = (epoch_draws(r, 0, 0, len(images)) for r in (recipe, CROPPED))
    assert drawn[:, 2].eq(0).all()
    assert drawn[:, [0, 1, 3, 4]].equal(flipped[:, [0, 1, 3, 4]])
    whole = replace(recipe, crop_padding=0, cutout=0)
    for batch in epoch(images, whole):
        torch.testing.assert_close(batch.images, images.inputs[batch.indices] / images.max_pixel)


def test_cutout_blanks_one_square(images):
    drawn = torch.rand(23, DRAWS)
    blanked = cutout(torch.ones(23, 1, 12, 12), drawn, side=4)
    for image, (*_, row, column) in zip(blanked[:, 0], drawn.tolist(), strict=True):
        expected = np.ones((12, 12))
        top, left = int(row * 12) - 2, int(column * 12) - 2
        expected[max(top, 0) : top + 4, max(left, 0) : left + 4] = 0
        assert np.array_equal(image.numpy(), expected)


def test_the_first_split_is_neither_erased_nor_recoloured():
    pixels = torch.full((4, 1, 16, 16), 128, dtype=torch.uint8)
    recipe = replace(TIMM, aug_splits=3, random_erasing=1.0, batch_size=4)
    (batch,) = epoch(in_memory(pixels, np.zeros(4), "grey"), recipe)
    clean, second, third = batch.images.chunk(3)
    torch.testing.assert_close(clean, torch.full_like(clean, 128 / 255))
    assert all(len(view.unique()) > 20 for view in (*second, *third))


def test_an_image_that_cannot_be_read_is_named(images):
    class Broken:
        def read(self, position):
            raise OSError(f"folder/{position}.png is cut off")

        def name(self, position):
            return f"folder/{position}.png"

    broken = replace(images, inputs=None, reader=Broken())
    with pytest.raises(OSError, match=r"folder/22\.png is cut off"):
        list(build_loader(broken, CROPPED, CPU).eval_batches([torch.tensor([22])]))


class Cut:
    """Whose second image is cut off."""

    def read(self, position):
        if position == 1:
            raise UnreadableImageError(f"{self.name(1)}: cut off")
        return Image.new("L", (12, 12))

    def name(self, position):
        return f"folder/{position}.png"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_worker_names_it_in_a_line_too(workers):
    reader = ImageFileLoader(on_demand(Cut(), [0, 0, 0], "cut"), CROPPED, CPU, workers, training=False)
    with pytest.raises(
        UnreadableImageError, match=r"^folder/1\.png: cut off; `cyclofocal data check DATA` lists all .*read$"
    ):
        list(reader.eval_batches([torch.arange(3)]))


@pytest.mark.parametrize("kind", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
@pytest.mark.parametrize("size", [6, 7])
def test_mixup_of_soft_targets_equals_one_process(kind, size):
    mixer = build_mixer(replace(digits(), **kind), classes=10)
    images, labels = torch.rand(size, 3, 8, 8), torch.arange(size)
    soft = 0
    for step in range(10):
        mixed, target = mix(mixer, images.clone(), labels, 0, 0, step)
        assert mixed.shape == images.shape
        torch.testing.assert_close(target.sum(1), torch.ones(size))
        for place in range(size):
            mirror = size - 1 - place
            share = target[place, labels[place]]
            if place != mirror:
                torch.testing.assert_close(target[place, labels[mirror]], 1 - share)
                soft += 0.01 < share < 0.99
            if "cutmix" not in kind:
                torch.testing.assert_close(mixed[place], share * images[place] + (1 - share) * images[mirror])
        for rank in (0, 1):
            own = Shard(rank, 2).of(torch.arange(size))
            their_images, their_target = mix(mixer, images[own], labels[own], 0, 0, step)
            assert torch.equal(their_images, mixed[own])
            assert torch.equal(their_target, target[own])
    assert soft > 10


@pytest.mark.parametrize("policy", ["rand-m10-inc1", "v0"])
def test_every_operation_of_a_policy_works_at_full_strength(images, policy):
    from timm.data.auto_augment import posterize as strict

    from cyclofocal.lab.training.transforms import TimmTransform, posterize

    transform = TimmTransform(replace(TIMM, auto_augment=policy))
    for index in range(150):  # one in fifteen operations posterizes, to no bit at the end of its range
        assert transform(images.image(0), (0, 0, index)).isfinite().all()
    assert not np.asarray(posterize(images.image(0), 0)).any()
    assert np.array_equal(np.asarray(posterize(images.image(0), 3)), np.asarray(strict(images.image(0), 3)))
