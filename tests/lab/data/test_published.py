"""Images are counted, faults are named, and lists are known as the published ones in any layout."""

import hashlib

import numpy as np
import pytest
from typer.testing import CliRunner

from cyclofocal.lab.commands import app
from cyclofocal.lab.data import published as check
from cyclofocal.lab.data.lists import list_images
from cyclofocal.lab.data.published import PUBLISHED, Published, content_digest
from cyclofocal.lab.longtail import OLTR
from formats import picture, write_folder, write_list

LINES = [("train/ant/0.png", 0), ("train/ant/1.png", 0), ("train/bee/0.png", 1)]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A published data set of one list with its images."""
    for i, (name, _) in enumerate(LINES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(tmp_path / name)
    path = write_list(tmp_path / "list.txt", LINES)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    content = hashlib.sha256(b"0.png 0\n0.png 1\n1.png 0\n").hexdigest()
    monkeypatch.setitem(PUBLISHED, "places-lt", {"list.txt": Published(3, 2, sha256, content)})
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)], env={"COLUMNS": "300"})


def test_a_sound_tree(tree):
    result = run("places-lt", "--lists", tree)
    assert result.exit_code == 0, result.output
    assert "3 images of 2 classes, 1 to 2 each; 0 missing, 0 unreadable" in result.output
    assert "the published list (SHA-256)" in result.output


def test_missing_and_unreadable_images(tree):
    (tree / LINES[0][0]).unlink()
    (tree / LINES[1][0]).write_text("no image")
    result = run("places-lt", "--lists", tree, "--images", tree)
    assert result.exit_code == 1
    assert "1 missing, 1 unreadable" in result.output
    assert f"{tree / LINES[0][0]}: no such file" in result.output
    elsewhere = run("places-lt", "--lists", tree, "--images", tree / "train")
    assert "is the list of another layout than the images?" in elsewhere.output


def test_another_layout_is_the_same_list_other_images_are_not(tree):
    other = tree / "v2"
    for path in [other, *(other / name for name in ("data/a/ant", "data/b/bee"))]:
        path.mkdir(parents=True)
    moved = [(name.replace("train/", f"data/{name[6]}/"), label) for name, label in LINES[::-1]]
    for name, _ in moved:
        picture(0).save(other / name)
    write_list(other / "list.txt", moved)
    result = run("places-lt", "--lists", other, "--against", tree)
    assert result.exit_code == 0, result.output
    assert "another layout of the published list: the same file names and labels" in result.output
    assert f"the same 3 images and labels as {tree / 'list.txt'}" in result.output
    write_list(other / "list.txt", [*moved[:2], (moved[2][0], 1)])
    wrong = run("places-lt", "--lists", other, "--against", tree)
    assert wrong.exit_code == 1
    assert "not the published list" in wrong.output
    assert f"1 only in {tree / 'list.txt'} (0.png 0)" in wrong.output


def test_a_list_known_by_its_checksum_alone(tree, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "places-lt", {"list.txt": Published(3, 2, "0" * 64)})
    result = run("places-lt", "--lists", tree)
    assert result.exit_code == 1
    assert "not the published file (another SHA-256), though it has 3 images of 2 classes as well" in result.output


def test_custom_lists_and_folders(tree):
    assert run(tree / "list.txt").exit_code == 0
    elsewhere = write_list(tree / "train" / "mine.txt", LINES)
    assert run(elsewhere, "--images", tree).exit_code == 0
    assert run(elsewhere).exit_code == 1
    folder = write_folder(tree / "own" / "train", {"ant": 2, "bee": 3})
    write_folder(tree / "own" / "test", {"ant": 1, "bee": 1}, seed=100)
    result = run(tree / "own")
    assert result.exit_code == 0, result.output
    assert "5 images of 2 classes, 2 to 3 each" in result.output
    assert "2 images of 2 classes, 1 to 1 each" in result.output
    (folder / "bee" / "0.png").write_bytes((folder / "bee" / "0.png").read_bytes()[:60])
    assert "1 unreadable" in run(tree / "own").output


def test_folders_are_checked_as_training_reads_them(tree):
    own = tree / "high" / "own"
    for seed, split in enumerate(("Training", "Testing")):
        write_folder(own / split, {"ant": 2, "bee": 3}, seed=100 * seed)
    result = run(own)
    assert result.exit_code == 0, result.output
    for split in ("Training", "Testing"):
        assert f"{own}/{split}: 5 images of 2 classes" in result.output
    assert run(own.parent).exit_code == 2
    write_folder(own / "val", {"ant": 2, "cow": 3})
    assert "must have the same classes" in " ".join(run(own).output.replace("│", " ").split())


def test_folders_that_are_not_checked_are_named(tree):
    for seed, split in enumerate(("train", "test_images", "holdout")):
        write_folder(tree / "own" / split, {"ant": 2, "bee": 3}, seed=100 * seed)
    result = run(tree / "own")
    assert result.exit_code == 0, result.output
    assert f"warning: {tree}/own: not read, for their names are no splits: holdout, test_images; call" in result.stderr
    assert "not read" not in run(tree / "own" / "train").output


def test_a_class_too_small_to_split_is_named(tree):
    write_folder(tree / "flat", {"ant": 2, "bee": 1})
    assert "too small to split into training and test, with 1 image each: bee; add images" in run(tree / "flat").output


def test_copies_in_custom_data_are_reported_and_not_sound(tree):
    write_folder(tree / "own" / "train", {"ant": 2, "bee": 2})
    write_folder(tree / "own" / "test", {"ant": 1, "bee": 3}, seed=1)
    result = run(tree / "own")
    assert result.exit_code == 1
    assert f"2 of 4 test images are train images too, byte for byte: {tree}/own/test/ant/0.png = " in result.output
    for i in range(3):
        picture(50 + i).save(tree / "own" / "test" / "bee" / f"{i}.png")
    picture(60).save(tree / "own" / "test" / "ant" / "0.png")
    assert run(tree / "own").exit_code == 0
    picture(0).save(tree / "own" / "train" / "bee" / "0.png")
    said = run(tree / "own").output
    assert "1 image is of two classes" in said
    assert "bee/0.png (class bee) = " in said
    assert run(tree / "own").exit_code == 1
    picture(1).save(tree / "own" / "train" / "ant" / "0.png")
    assert "1 image is repeated within its class" in run(tree / "own").output


def test_lists_are_checked_against_each_other(tree):
    other = write_list(tree / "test.txt", [*LINES[1:], ("./train/ant/1.png", 0)])
    result = run(tree / "list.txt", other)
    assert result.exit_code == 1
    assert "3 of 3 test.txt images are list.txt images too" in result.output
    assert run(tree / "list.txt").exit_code == 0
    refused = run(tree / "list.txt", tree / "train")
    assert refused.exit_code == 2
    assert "is no list file" in refused.output


def test_lists_that_number_classes_otherwise_are_not_sound(tree):
    other = write_list(tree / "test.txt", [(name, 1 - label) for name, label in LINES])
    result = run(tree / "list.txt", other)
    assert result.exit_code == 2
    assert "the label of class ant is 1" in " ".join(result.output.replace("│", " ").split())


def test_one_class_is_not_sound(tree):
    assert run(write_list(tree / "one.txt", LINES[:2])).exit_code == 1


def test_copies_in_a_published_set_are_reported_and_sound(tree):
    picture(0).save(tree / LINES[2][0])
    result = run("places-lt", "--lists", tree)
    assert result.exit_code == 0, result.output
    assert "1 image is of two classes" in result.output


def test_what_is_not_there_is_named(tree):
    for arguments, message in (
        (("places-lt", "--lists", tree / "train"), "no such list file"),
        (("places-lt",), "needs the folder of its list files"),
        (("place-lt",), "gtsrb, places-lt, imagenet-lt, and no file or folder"),
        ((tree / "list.txt", "--lists", tree), "is not a published data set"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.output.replace("│", " ").split())


def test_the_content_digest_knows_no_folders_and_no_order(tree):
    shuffled = write_list(tree / "other.txt", [(name.removeprefix("train/"), label) for name, label in LINES[::-1]])
    assert content_digest(shuffled) == content_digest(tree / "list.txt")
    changed = write_list(tree / "changed.txt", [*LINES[:2], ("train/bee/0.png", 0)])
    assert content_digest(changed) != content_digest(shuffled)


def test_what_is_published():
    whole = {name: {file: (p.n_images, p.n_classes) for file, p in files.items()} for name, files in PUBLISHED.items()}
    assert list(whole["places-lt"].values()) == [(62500, 365), (7300, 365), (36500, 365)]
    assert list(whole["imagenet-lt"].values()) == [(115846, 1000), (20000, 1000), (50000, 1000)]
    digests = [digest for files in PUBLISHED.values() for p in files.values() for digest in (p.sha256, p.content)]
    assert all(len(bytes.fromhex(digest)) == 32 for digest in digests if digest)


def test_a_list_of_the_size_of_places_lt(tmp_path):
    counts = np.repeat([4980, 358, 60, 17, 16], [1, 131, 156, 30, 47])
    path = tmp_path / "train.txt"
    path.write_text("".join(f"train/c{c}/{i:08d}.jpg {c}\n" for c, count in enumerate(counts) for i in range(count)))
    images = list_images(path, tmp_path)
    assert len(images) == 62500
    assert np.array_equal(np.bincount(images.labels), counts)
    assert [len(group) for group in OLTR.classes_of(counts.tolist()).values()] == [132, 156, 77]
    assert check.list_differences(path, path) == f"the same 62500 images and labels as {path}"
