"""Promise: a public name stands for one thing, so that a search for it finds one definition."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src/cyclofocal"
MOST_SHARED = 14

ALLOWED = {
    "BinaryCyclicalFocalLoss": "the same loss for Keras",
    "BoosterLoss": "the same object for LightGBM and XGBoost, whose signatures differ",
    "CyclicalFocalCallback": "the same callback for Keras, Lightning and skorch",
    "CyclicalFocalLoss": "the same loss for Keras",
    "LossScheduler": "the same wrapper of a scheduler for Accelerate and timm",
    "binary_cyclical_focal_loss": "the same function for JAX",
    "cyclical_eta": "the same function for JAX",
    "cyclical_focal_loss": "the same function for JAX",
    "available": "each kernel backend answers it",
    "reason": "each kernel backend answers it",
    "scale_": "each kernel backend has it",
    "sigmoid": "each kernel backend has it",
    "softmax": "each kernel backend has it",
    "probabilities": "the same conversion for skorch and for boosters",
}
"""Names of several modules that mean the same in all of them, and why."""


def public_names(path: Path) -> set[str]:
    """Functions, classes, constants and types that a module defines at its top level, without a leading underscore."""
    return {name for node in ast.parse(path.read_text(encoding="utf-8")).body for name in _defined(node)}


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield from [node.name] * (not node.name.startswith("_"))
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        leaves = [leaf for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)]
        yield from (leaf.id for leaf in leaves if not leaf.id.startswith("_"))


def shared_names() -> dict[str, list[str]]:
    """Public names that more than one module defines, with these modules."""
    modules = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in public_names(path):
            modules[name].append(str(path.relative_to(PACKAGE)))
    return {name: found for name, found in sorted(modules.items()) if len(found) > 1}


def test_a_public_name_has_one_meaning():
    unexplained = {name: found for name, found in shared_names().items() if name not in ALLOWED}
    assert not unexplained, "\n".join(f"{name}: {', '.join(found)}" for name, found in unexplained.items())


def test_allowed_names_are_few_and_needed():
    assert len(ALLOWED) <= MOST_SHARED
    assert set(ALLOWED) <= set(shared_names()), "remove a name that only one module still defines"
