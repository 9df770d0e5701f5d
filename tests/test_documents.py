"""Promise: the examples in README, docs and docstrings run; README is short, and what pages say of files is true."""

import doctest
import importlib
import importlib.util
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest
import torch

import cyclofocal

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS = {  # where it is not the name alone
    "lightgbm": ["lightgbm", "sklearn"],
    "segmentation": ["monai", "segmentation_models_pytorch"],
    "sklearn": ["sklearn", "skorch"],
    "xgboost": ["sklearn", "xgboost"],
}
HOSTS = {path.stem for path in (ROOT / "src/cyclofocal/integrations").glob("*.py")} - {
    "__init__",
    "host",
    "progress",
    "boosting",
}
MOST_README_LINES = 130
MODULES = [m.name for m in pkgutil.walk_packages(cyclofocal.__path__, "cyclofocal.") if not m.name.endswith("_native")]


def _skip_without_host(page: str):
    """Skip a page or module named after a framework that is not installed."""
    for name in NEEDS.get(page, [page] if page in HOSTS else []):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """Run the blocks of a page in order, with shared names; skip those that begin with '# not run'."""
    _skip_without_host(page.stem)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        if not block.startswith("# not run"):
            exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    if ".integrations." in name:
        _skip_without_host(name.rpartition(".")[2])
    torch.manual_seed(0)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_install_lines_are_true_from_a_clone():
    """The package is on no index, so pip gets the folder; its extras are those of pyproject.toml."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    said = 0
    for path in [*PAGES, *(ROOT / "src").rglob("*.py")]:
        text = path.read_text()
        assert not re.search(r"pip\s+install\s+['\"]?cyclofocal", text), path
        for line in re.findall(r"pip\s+install\s+'\.\[(.*?)\]'", text):
            said += 1
            assert set(line.split(",")) <= set(extras), path
    assert said > 15


def test_recommended_settings_are_measured_or_say_they_are_not():
    """Every difference, or level with and without a threshold, on the decision page is in the tables of records."""
    text = (ROOT / "docs/choosing.md").read_text()
    tables = "".join(
        place
        for name in ("evidence.md", "imbalance.md", "detection.md")
        for place in re.findall(
            r"<!-- evidence: .*?<!-- end of evidence -->", (ROOT / "docs" / name).read_text(), re.DOTALL
        )
    )
    rows = text.partition("## Which setting")[2].partition("## ")[0].split("|---|---|---|\n")[1].partition("\n\n")[0]
    for row in rows.splitlines():
        differences = re.findall(r"[+-]\d+\.\d\b", row)
        levels = re.findall(r"(\d+\.\d) to (\d+\.\d) %", row)
        assert differences or levels or "not measured here" in row, row
        assert all(f"({difference})" in tables or f"| {difference} [" in tables for difference in differences), row
        assert all(f"{before} ({after})" in tables for before, after in levels), row


def test_readme_is_short_and_answers_first():
    """Its first screen has the answer for imbalanced data; its figures are those of the table on the page."""
    text = (ROOT / "README.md").read_text()
    lines = text.splitlines()
    assert len(lines) <= MOST_README_LINES
    assert any("imbalanced, what do I do?" in line for line in lines[:12])
    assert "from_counts" in "\n".join(lines[:20])
    tables = "".join(re.findall(r"<!-- evidence: .*?<!-- end of evidence -->", text, re.DOTALL))
    differences = re.findall(r"[+-]\d+\.\d\b", text.partition("## Install")[0])
    assert differences
    assert all(f"({difference})" in tables for difference in differences)
    levels = re.findall(r"(\d+\.\d) to (\d+\.\d) %", text.partition("## Install")[0])
    evidence = (ROOT / "docs/evidence.md").read_text()
    assert levels
    assert all(f"{before} ({after})" in evidence for before, after in levels)


def test_tree_in_contributing_is_the_tree():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tree = re.search(r"```\nsrc/cyclofocal/\n(.*?)```", text, re.DOTALL)
    assert tree, "CONTRIBUTING.md has no tree of src/cyclofocal"
    named, folders = set(), ["src/cyclofocal"]
    for line in tree[1].splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 4, line.split()[0]
        path = f"{folders[depth - 1]}/{name.rstrip('/')}"
        folders[depth:] = [path] if name.endswith("/") else []
        named.add(path)
    opened = {str(Path(name).parent) for name in named}
    whole = tuple(f"{name}/" for name in named if (ROOT / name).is_dir() and name not in opened)  # named as one
    present = {str(p.relative_to(ROOT)) for p in (ROOT / "src/cyclofocal").rglob("*") if p.suffix in (".py", ".cpp")}
    present = {p for p in present if not p.endswith("__init__.py") and not p.startswith(whole)}
    assert {n for n in named if n.endswith((".py", ".cpp"))} == present
    assert all((ROOT / n).exists() for n in named)


def test_files_named_in_contributing_exist():
    text = re.sub(r"```.*?```", "", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL)
    named = [name for name in re.findall(r"`([\w/.]+(?:\.(?:py|md|toml)|/))`", text) if "NAME" not in name]
    missing = [name for name in named if not any((ROOT / top / name).exists() for top in ("", "src/cyclofocal"))]
    assert len(named) > 20
    assert not missing
