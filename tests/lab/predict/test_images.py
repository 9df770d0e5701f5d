"""A model of images gives the same logits again, for images of any size, and refuses classes it does not know."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import cyclofocal.lab as lab
from cyclofocal.lab.data.load import load as load_data_set
from cyclofocal.lab.messages import DamagedDataError, MissingDataError, UnreadableImageError
from cyclofocal.lab.oltr.stages import task_of
from cyclofocal.lab.predict.stream import predict_file
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.image_folder import image_recipe
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY, LOSSES
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.train import load_data, train
from formats import picture, write_folder, write_list
from stages import FIRST

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = RunOptions(cpu=True, keep_models=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("images")
    for seed, split in enumerate(("train", "val", "test")):
        write_folder(folder / "pictures" / split, {"cat": 4, "dog": 3, "owl": 2}, 100 * seed)
    small = {"model": "small-convnet", "width": 4, "image_size": 8, "epochs": 2, "batch_size": 4, "warmup_epochs": 0}
    recipe = replace(image_recipe(str(folder / "pictures")), **small)
    train(Job(recipe, CROSS_ENTROPY, 0, folder / "run", OPTIONS))
    return folder / "run", folder / "pictures"


def predicted(run, path, *sources):
    summary = predict_file(lab.load(run), sources, path / "out.csv")
    return summary, pd.read_csv(path / "out.csv")


def test_logits_are_those_of_the_run_to_the_bit(run):
    stored, model = np.load(run[0] / "predictions.npz"), lab.load(run[0])
    assert np.array_equal(model.logits(stored["ids"].tolist()), stored["logits"])
    assert stored["classes"].tolist() == ["cat", "dog", "owl"]
    images = [Image.open(path) for path in stored["ids"]]
    np.testing.assert_allclose(model.logits(images), stored["logits"], rtol=1e-4, atol=1e-5)
    assert model.transform(images[0]).shape == (3, 8, 8)
    assert model.predict(images).tolist() == [model.classes[c] for c in stored["logits"].argmax(1)]


def test_folder_list_and_files_give_the_same_classes(run, tmp_path):
    summary, whole = predicted(run[0], tmp_path, run[1] / "test")
    assert (summary.samples, summary.labelled.sum()) == (9, 9)
    paths = [run[1] / "test" / name / "0.png" for name in ("owl", "cat")]
    expected = whole.set_index("path").loc[list(map(str, paths)), "class"].tolist()
    summary, files = predicted(run[0], tmp_path, *paths)
    assert (files["class"].tolist(), summary.labelled.sum()) == (expected, 0)
    labelled = write_list(tmp_path / "new.txt", [(str(paths[0]), 2), (str(paths[1]), 0)])
    summary, listed = predicted(run[0], tmp_path, labelled)
    assert (listed["class"].tolist(), summary.labelled.sum()) == (expected, 2)
    (tmp_path / "plain.txt").write_text(f"{paths[0]}\n{paths[1]}\n")
    assert predicted(run[0], tmp_path, tmp_path / "plain.txt")[1]["class"].tolist() == expected


def test_images_of_another_size_and_mode_are_predicted(run, tmp_path):
    for number, (size, mode) in enumerate([((40, 30), "RGB"), ((5, 90), "L"), ((8, 8), "RGBA")]):
        picture(number, size, mode).save(tmp_path / f"{number}.png")
    summary, found = predicted(run[0], tmp_path, tmp_path)
    assert (summary.samples, summary.labelled.sum()) == (3, 0)
    assert found[[f"p({name})" for name in ("cat", "dog", "owl")]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda f: write_folder(f / "x", {"cat": 1, "cow": 1}),
            ValueError,
            r"knows no class 'cow'.*cat, dog, owl",
        ),
        (lambda f: write_list(f / "x", [("a.png", 3)]), DamagedDataError, "label 3, but the model has 3 classes"),
        (lambda f: f / "nowhere", MissingDataError, "nowhere: no such file"),
        (lambda f: f / "new.csv", ValueError, r"new\.csv: a table, but the model was trained on images"),
        (lambda f: f, MissingDataError, "no images in it"),
        (lambda f: f / "gone.png", UnreadableImageError, r"gone.png: no such file"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(run, tmp_path, make, error, words):
    with pytest.raises(error, match=words):
        predicted(run[0], tmp_path, make(tmp_path))
    assert not (tmp_path / "out.csv").exists()


def test_all_unreadable_images_are_named(run, tmp_path):
    write_folder(tmp_path / "new", {"monday": 9})
    broken = sorted((tmp_path / "new" / "monday").iterdir())[1:8]
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UnreadableImageError, match=r"^7 of 9 images: ") as error:
        predicted(run[0], tmp_path, tmp_path / "new")
    assert all(f"{path}: not a readable image" in str(error.value) for path in broken)


def test_folders_without_a_class_name_are_no_classes(run, tmp_path):
    write_folder(tmp_path / "new", {"monday": 2, "tuesday": 1})
    summary, _ = predicted(run[0], tmp_path, tmp_path / "new")
    assert (summary.samples, summary.labelled.sum()) == (3, 0)


@pytest.mark.parametrize("loss", [x for x in LOSSES if x.name == "ce" or x.max_margin], ids=lambda loss: loss.name)
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_digits_with_margins_and_moving_averages(loss, ema, tmp_path):
    recipe = replace(digits(), epochs=1, warmup_epochs=0, ema_decay=ema)
    train(Job(recipe, loss, 0, tmp_path, OPTIONS))
    test = load_data(recipe, tmp_path, 0).test
    logits = lab.load(tmp_path).logits((test.inputs - 16 * recipe.mean[0]) * (1 / (16 * recipe.std[0])))
    np.testing.assert_allclose(logits, np.load(tmp_path / "predictions.npz")["logits"], rtol=1e-5, atol=1e-5)


def test_both_stages_are_loaded(tmp_path):
    first = Job(FIRST, CROSS_ENTROPY, 0, tmp_path / "1", OPTIONS)
    second = Job(replace(FIRST, name="digits-2", stage=2), CROSS_ENTROPY, 0, tmp_path / "2", OPTIONS, first)
    for job in (first, second):
        train(job, task_of(job.recipe))
        stored = np.load(job.folder / "predictions.npz")
        known = load_data(FIRST, tmp_path, 0).test
        pixels = known.inputs[torch.from_numpy(known.labels < 8)] / 16
        np.testing.assert_allclose(lab.load(job.folder).logits(pixels), stored["logits"][:240], rtol=1e-4, atol=1e-5)


def test_all_data_of_a_folder_are_read_from_both_splits(run):
    config = image_recipe(str(run[1])).data
    usual, found = load_data_set(config), load_data_set(config, test_too=True)
    expected = [split.name(i) for split in (usual.train, usual.test) for i in range(len(split))]
    assert [found.train.name(i) for i in range(len(found.train))] == expected
    for i, path in enumerate(expected):
        assert found.train.image(i).tobytes() == Image.open(path).convert("RGB").tobytes()
    assert found.train.labels.tolist() == [*usual.train.labels, *usual.test.labels]
