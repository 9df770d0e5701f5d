"""Images keep their pixels, labels and names through any subset, and say which one cannot be read."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cyclofocal.lab.data.dataset import in_memory, on_demand
from cyclofocal.lab.data.files import files
from cyclofocal.lab.messages import MissingImageError, UnreadableImageError
from formats import picture

PIXELS = torch.arange(5 * 3 * 2 * 4, dtype=torch.uint8).reshape(5, 3, 2, 4)
LABELS = [0, 1, 2, 1, 0]


def _saved(folder, modes):
    names = []
    for i, mode in enumerate(modes):
        names.append(f"{i}.{'jpg' if mode == 'CMYK' else 'png'}")
        picture(i, mode=mode).save(folder / names[-1])
    return on_demand(files(folder, names), range(len(names)), "saved")


@given(first=st.lists(st.integers(0, 4), min_size=1), data=st.data())
def test_a_subset_of_a_subset_is_that_of_its_indices(first, data):
    second = data.draw(st.lists(st.integers(0, len(first) - 1)))
    images = in_memory(PIXELS, LABELS, "made")
    composed = images.select([first[i] for i in second])
    nested = images.select(first).select(second)
    assert nested.labels.tolist() == composed.labels.tolist() == [LABELS[first[i]] for i in second]
    assert torch.equal(nested.inputs, PIXELS[[first[i] for i in second]])
    assert [nested.name(i) for i in range(len(second))] == [f"image {first[i]} of made" for i in second]


def test_pixels_and_pictures_agree():
    image = in_memory(PIXELS, LABELS, "made").select([3]).image(0)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), PIXELS[3].permute(1, 2, 0).numpy())
    grey = in_memory(PIXELS[:, :1], LABELS, "made").image(2)
    assert grey.mode == "L"
    assert np.array_equal(np.asarray(grey), PIXELS[2, 0].numpy())


def test_few_shades_become_the_whole_range_in_a_picture():
    shades = torch.tensor([0, 8, 16], dtype=torch.uint8).view(1, 1, 1, 3)
    assert np.asarray(in_memory(shades, [0], "made", max_pixel=16).image(0)).tolist() == [[0, 128, 255]]


def test_files_come_grey_or_in_colour_and_as_they_were_saved(tmp_path):
    images = _saved(tmp_path, ["RGB", "L", "RGBA", "CMYK"])
    assert [images.image(i).mode for i in range(4)] == ["RGB", "L", "RGB", "RGB"]
    assert np.array_equal(np.asarray(images.select([1, 0]).image(1)), np.asarray(picture(0)))
    assert images.select([2, 0]).name(1) == str(tmp_path / "0.png")


def test_a_worker_can_have_them(tmp_path):
    images = pickle.loads(pickle.dumps(_saved(tmp_path, ["RGB", "L"]).select([1])))
    assert np.array_equal(np.asarray(images.image(0)), np.asarray(picture(1, mode="L")))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_file_that_is_cut_off_is_named(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    picture(0, size=(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UnreadableImageError, match=f"^{path}: not a readable image"):
        on_demand(files(tmp_path, [path.name]), [0], "cut").image(0)


def test_other_unreadable_files_are_named(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)).save(tmp_path / "deep.png")
    images = on_demand(files(tmp_path, ["text.png", "deep.png", "gone.png"]), [0, 0, 0], "bad")
    with pytest.raises(UnreadableImageError, match=r"text\.png: not a readable image"):
        images.image(0)
    with pytest.raises(UnreadableImageError, match=r"deep\.png: mode I;16.* 8 bits"):
        images.image(1)
    with pytest.raises(MissingImageError, match=r"gone\.png: no such file"):
        images.image(2)


def test_an_index_outside_is_refused():
    images = in_memory(PIXELS, LABELS, "made")
    for call in (images.image, images.name, lambda i: images.select([0, i])):
        for index in (-1, 5):
            with pytest.raises(IndexError, match=r"made: ind.* of 5 samples"):
                call(index)


def test_images_that_do_not_fit_together_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"made: 4 labels, but other lengths \[4, 5\]"):
        in_memory(PIXELS, LABELS[:4], "made")
    with pytest.raises(ValueError, match=r"torch\.float32 of shape .* must be uint8"):
        in_memory(PIXELS.float(), LABELS, "made")
    with pytest.raises(ValueError, match="either inputs or a reader"):
        on_demand(None, LABELS, "made")
