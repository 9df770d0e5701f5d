"""The recipes of stored results read, and give the fields and the identity that they were stored with."""

import json
from pathlib import Path

import pytest

from cyclofocal.lab.hashes import content_hash
from cyclofocal.lab.oltr.recipes import TWO_STAGES
from cyclofocal.lab.oltr.stage_recipe import StageRecipe
from cyclofocal.lab.oltr.stages import with_stage1_digest
from cyclofocal.lab.recipes.catalogue import RECIPES
from cyclofocal.lab.recipes.detection import DetectionRecipe
from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.records import read_records
from cyclofocal.lab.training.run_folder import identity

RESULTS = Path(__file__).parents[3] / "results"
FILES = sorted(path for path in RESULTS.glob("*.jsonl*") if path.name != "speed.jsonl")


def recipe_of(record):
    kind = StageRecipe if "stage" in record.recipe else DetectionRecipe if record.is_detection else Recipe
    return kind.from_flat(record.recipe)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_identities_of_stored_runs_are_unchanged(path):
    known = set()
    for record in read_records(path):
        key = json.dumps(record.recipe)
        if key in known:
            continue
        known.add(key)
        found = identity(recipe_of(record), LossSettings(**record.loss), record.seed)
        assert found["recipe"].items() >= record.recipe.items()
        assert found["recipe"].keys() == recipe_of(record).flat().keys()
        if found["recipe"].keys() == record.recipe.keys():
            assert list(found["recipe"]) == list(record.recipe) or "stage" in record.recipe
            stored = {"recipe": record.recipe, "loss": record.loss, "seed": record.seed}
            assert content_hash({name: found[name] for name in stored}) == content_hash(stored)
    assert known


HASHES = {
    "digits": "050a6399bb1d1458",
    "fashion-mnist": "403a4c0b53d46c2a",
    "fashion-mnist-4000": "44476fba5d5af3e8",
    "fashion-mnist-imbalanced": "f1b5cdb5d8ce7205",
    "fashion-mnist-lt": "d10f7896fe775a04",
    "cifar10": "8c71914cc70e32d4",
    "cifar100": "bddc1d90c689413a",
    "cifar10-fast": "38e50b8962574fe9",
    "cifar100-fast": "e9eb325beac3abfc",
    "cifar10-4000": "e6da0d6a0c05a727",
    "cifar10-5_3": "b7855fb0ea3cfc3d",
    "cifar10-5_3-released": "be2c93e108439f95",
    "cifar10-6_2": "628d7e6ec5e3f5fb",
    "cifar100-4000": "98e40db4a7b9ef7a",
    "cifar100-5_3": "6ccaefdfe6fdbeac",
    "cifar100-6_2": "f859416d471ab987",
    "cifar10-lt-10": "dbce8fb50b58e6c9",
    "cifar10-lt-50": "89ff3b378064fd1c",
    "cifar10-lt-100": "8a3ef303d4b2394a",
    "cifar10-lt-200": "83f1b5477431f706",
    "cifar100-lt-10": "0ed18cabb7e33b77",
    "cifar100-lt-50": "b952b50e3fe62b71",
    "cifar100-lt-100": "374a43e46c065005",
    "cifar100-lt-200": "980483724685f107",
    "cifar10-4000-small": "2630f703fe2535a9",
    "cifar10-5_3-small": "fa97ceb801f3a1aa",
    "cifar10-6_2-small": "32bbc2f6a7d8880d",
    "cifar100-4000-small": "bc17d8006e1e5a9f",
    "cifar100-5_3-small": "271a2abf71b5d149",
    "cifar100-6_2-small": "40b50a2dd9f8809c",
    "cifar10-lt-10-small": "838afcaa281e568a",
    "cifar10-lt-50-small": "37dabb23690dd655",
    "cifar10-lt-100-small": "637c2b6d10d26de8",
    "cifar100-lt-10-small": "0ce45fe70e05ebf9",
    "cifar100-lt-50-small": "63b3baafdf2756fa",
    "cifar100-lt-100-small": "df3c3cc4727ac03a",
    "tiny-imagenet-lt": "4877a19df7845c0d",
    "plankton": "c5014a3be95fe397",
    "gtsrb": "42f83bef7e2b9937",
    "imagenet": "5695716e44713ef7",
    "imagenet-lt": "ead633b033b2a8ef",
    "places-lt": "327b69fa08b4da77",
    "fashion-mnist-open": "67b3fa22a2bd806d",
    "own-lt": "3d5a5a677dc9edab",
}
"""Content of every recipe by its name; of two stages, both."""


@pytest.mark.parametrize("name", HASHES)
def test_recipes_have_the_content_of_earlier_runs(name):
    if name in TWO_STAGES:
        stages = TWO_STAGES[name]()
        assert content_hash([stages.first.flat(), with_stage1_digest(stages).flat()]) == HASHES[name]
    else:
        assert content_hash(RECIPES[name]().flat()) == HASHES[name]
