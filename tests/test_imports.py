"""Promise: imports run one way, the library needs torch alone, and the lab is never imported by it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cyclofocal

ROOT = Path(cyclofocal.__file__).parent
ORDER = [  # a module may import from rooms above its own line only
    "ranges",
    "arguments",
    "equation",
    "schedules",
    "imbalance",
    "clock",
    "kernels",
    "functional",
    "losses",
    "linear",
    "sharded",
    "integrations",
    "lab.messages",
    "lab.longtail",
    "lab.metrics",
    "lab.hashes",
    "lab.schema",
    "lab.data",
    "lab.recipes",
    "lab.records",
    "lab.training",
    "lab.detection",
    "lab.report",
    "lab.oltr",
    "lab.predict",
    "lab.compare",
    "lab.bench",
    "lab.commands",
    "lab.cli",
]


def room(module: str) -> str:
    """The line of ORDER that a dotted module below cyclofocal belongs to; '' for the package itself."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "lab" and len(parts) > 1 else parts[0]


def imports_of(path: Path) -> set[str]:
    """Modules below cyclofocal that a file imports, dotted and without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("cyclofocal.") for name in found if name.startswith("cyclofocal.")}


def test_every_file_has_a_room():
    modules = {room(_dotted(path)) for path in ROOT.rglob("*.py")} - {"__init__", "", "lab", "lab.__init__"}
    assert modules <= set(ORDER), f"no line in ORDER for {modules - set(ORDER)}"


def test_no_import_climbs():
    for path in ROOT.rglob("*.py"):
        own = room(_dotted(path))
        if own not in ORDER:
            continue  # the package's own __init__ offers names of any room
        for name in imports_of(path):
            target = room(name)
            if target in ORDER and target != own:
                assert ORDER.index(target) < ORDER.index(own), f"{path.name} imports {name}, which is further down"


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_importing_the_library_loads_torch_and_nothing_else():
    code = (
        "import sys, torch; before = set(sys.modules); import cyclofocal;"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    foreign = [m for m in loaded if m != "cyclofocal" and m not in sys.stdlib_module_names]
    assert not foreign


def test_commands_that_train_nothing_start_without_torch():
    commands = ("decoupled", "evaluate", "predict", "recipes", "report")
    code = (
        "import sys, cyclofocal.lab.report.html; from cyclofocal.lab.commands import "
        + ", ".join(commands)
        + "; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_and_no_other():
    for name in (*cyclofocal.__all__, "kernels", "schedules"):
        assert name in getattr(cyclofocal, name).__name__
    with pytest.raises(AttributeError, match="no attribute 'cyclic_loss'"):
        _ = cyclofocal.cyclic_loss
