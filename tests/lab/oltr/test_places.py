"""Trees in both layouts of Places-LT go through both stages by one command; what does not fit is refused first."""

import pytest
from typer.testing import CliRunner

from cyclofocal.lab.commands import app
from cyclofocal.lab.oltr.evaluation import evaluate_file
from cyclofocal.lab.records import read_records
from formats import picture, write_folder, write_list

CLASSES = {"airfield": 9, "attic": 4, "zen_garden": 2}
COUNTS = {"train": CLASSES, "val": dict.fromkeys(CLASSES, 1), "test": dict.fromkeys(CLASSES, 3)}
LAYOUTS = {
    "v1": {"train": "train/{name}", "val": "train/{name}", "test": "val/{name}"},
    "v2": {"train": "data_256/{name[0]}/{name}", "val": "data_256/{name[0]}/{name}", "test": "val_256"},
}
SMALL = ("model=resnet-10", "width=2", "image_size=32", "batch_size=5", "feature_length=8", "pretrained=false")


def write_tree(root, layout):
    """Lists and images of three classes, and an open set."""
    for split, counts in COUNTS.items():
        lines = []
        for label, (name, count) in enumerate(counts.items()):
            folder = LAYOUTS[layout][split].format(name=name)
            (root / folder).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                lines.append((f"{folder}/{split}_{label}{i:07d}.jpg", label))
                picture(100 * label + i, (40, 36)).save(root / lines[-1][0])
        write_list(root / f"Places_LT_{split}.txt", lines)
    (root / "open").mkdir()
    for i in range(4):
        picture(900 + i, (40, 36)).save(root / "open" / f"{i}.jpg")
    return root


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """A tree in each layout."""
    return {layout: write_tree(tmp_path_factory.mktemp(layout), layout) for layout in LAYOUTS}


def reproduce(name, out, *more, settings=()):
    words = [word for setting in (*SMALL, "epochs=1", *settings) for word in ("--set", setting)]
    arguments = ("reproduce", name, "--loss", "cyclical", "--cpu", "--out", out, *words, *more)
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "300"})


def of_lists(lists, images, out, *more, settings=()):
    return reproduce("places-lt", out, "--lists", lists, "--images", images, *more, settings=settings)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_both_stages_from_one_command(trees, layout, tmp_path):
    tree = trees[layout]
    result = of_lists(tree, tree, tmp_path, settings=[f"open_source={tree / 'open'}"])
    assert result.exit_code == 0, result.output
    for stage in (1, 2):
        (folder,) = (tmp_path / f"places-lt-{stage}").iterdir()
        (record,) = read_records(folder / "record.jsonl")
        assert record.train_counts == list(CLASSES.values())
        assert record.loss["gamma_pos"] == 2 - stage  # as published, stage by stage
        found = evaluate_file(folder / "predictions.npz")
        assert (found.n_images, found.n_unknown) == (9, 4)


def test_custom_folder_trains_both_stages(tmp_path):
    for split, counts in COUNTS.items():
        write_folder(tmp_path / "own" / split, counts, seed=0 if split == "train" else 100)  # val and test are alike
    settings = (f"source={tmp_path / 'own'}", "held_out_classes=1")
    result = reproduce("own-lt", tmp_path, settings=settings)
    assert result.exit_code == 0, result.output
    assert "2 of 6 test images are validation images too, byte for byte" in result.stderr
    assert "training images" not in result.stderr
    (folder,) = (tmp_path / "own-lt-2").iterdir()
    (record,) = read_records(folder / "record.jsonl")
    assert record.train_counts == [9, 4]
    assert record.metrics["auroc"] is not None


def test_mismatched_lists_are_refused_before_training(trees, tmp_path):
    tree = trees["v1"]
    images = [f"train/attic/train_1{i:07d}.jpg" for i in range(3)]

    def with_list(field, lines):
        return of_lists(tree, tree, tmp_path, settings=[f"{field}={write_list(tmp_path / f'{field}.txt', lines)}"])

    refused = {
        "is the list of another layout": of_lists(trees["v2"], tree, tmp_path),
        "listed images are not in": of_lists(tree, tree / "train", tmp_path),
        "no.jpg": with_list("test_list", [("no.jpg", 0)]),
        "label 3": with_list("test_list", [(images[0], 3)]),
        "1 of 3 classes have no": with_list("source", list(zip(images, [0, 2, 2], strict=True))),
        "labels of known classes count from 0": with_list("source", [(images[0], 0), (images[1], -1)]),
        "begins with the stage 1": of_lists(tree, tree, tmp_path, "--stage", "2"),
        "no such file": of_lists(tree, tree, tmp_path, settings=["1:weights_file=none.pth"]),
        "4 of 5 open-set images are training": of_lists(
            tree, tree, tmp_path, settings=[f"open_source={tree / 'train' / 'attic'}"]
        ),
        "no such list file": of_lists(tree, tree, tmp_path, settings=["open_source=none.txt"]),
    }
    for message, result in refused.items():
        assert result.exit_code == 1, message
        assert message in result.stderr, (message, result.stderr)
    assert not list(tmp_path.rglob("checkpoint*"))
