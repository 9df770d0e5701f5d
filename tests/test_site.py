"""Promise: links of the pages lead somewhere, the site has every page and public name, and its gallery runs."""

import ast
import re
import runpy
from pathlib import Path
from urllib.parse import unquote

import pytest

import cyclofocal
from cyclofocal import lab

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("plot_*.py"))
MADE = {"docs/gallery/index", "docs/gallery/plot_8_read_a_report.rst"}
"""Pages that ``make docs`` makes."""

NOT_LISTED = {"cyclofocal.integrations.keras.Clock": "the losses for Keras make it themselves"}
"""Public names that the API reference leaves out, and why."""


def _text(path: Path) -> str:
    """The text of a page without its blocks of code."""
    return re.sub(r"^```[a-z]*\n.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def _anchors(path: Path) -> set[str]:
    """Anchors of the headings, by the rule of GitHub."""
    headings = re.findall(r"^#+ (.*)$", _text(path), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    wrong = []
    for target in re.findall(r"\]\(([^()\s]+)\)", _text(page)):
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        if re.match(r"\w+:", target) or (file.is_relative_to(ROOT) and str(file.relative_to(ROOT)) in MADE):
            continue
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            wrong.append(target)
    assert wrong == []


def test_every_page_is_in_the_contents():
    listed = set()
    for page in DOCS.rglob("*.md"):
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL):
            for name in re.findall(r"^(?!:)(?:.*<)?([^\s<>]+)>?$", block, re.MULTILINE):
                found = [str(path.relative_to(DOCS)) for path in page.parent.glob(f"{name}.md")]
                folder = str(page.parent.relative_to(ROOT))
                assert found or f"{folder}/{name}" in MADE or f"{folder}/{name}.md" in MADE, f"{page}: {name}"
                listed |= set(found)
    assert {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} - listed == {"index.md"}


def _public() -> set[str]:
    """Qualified public names of the library, its integrations and the laboratory."""
    names = {f"cyclofocal.{name}" for name in cyclofocal.__all__} | {f"cyclofocal.lab.{name}" for name in lab.__all__}
    hosts = {re.findall(r"integrations[. ]+(?:import )?(\w+)", page.read_text())[:1][0] for page in _host_pages()}
    for module in ("schedules", *(f"integrations.{host}" for host in sorted(hosts))):
        tree = ast.parse((ROOT / f"src/cyclofocal/{module.replace('.', '/')}.py").read_text())
        defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        names |= {f"cyclofocal.{module}.{name}" for name in defined if not name.startswith("_")}
    return names


def _host_pages() -> list[Path]:
    return [page for page in sorted(DOCS.glob("*.md")) if "from cyclofocal.integrations" in page.read_text()]


def test_the_reference_lists_every_public_name():
    listed, modules = set(), set()
    for page in (DOCS / "api").glob("*.md"):
        current = ""
        for kind, name in re.findall(
            r"^\.\. (currentmodule|automodule|auto\w+):: (\S+)$", page.read_text(), re.MULTILINE
        ):
            if kind == "currentmodule":
                current = name
            elif kind == "automodule":
                modules.add(name)
            else:
                listed |= {name, f"{current}.{name}"}
    public = _public()
    assert len(public) > 35
    missing = {name for name in public - listed if name.rpartition(".")[0] not in modules}
    assert missing == set(NOT_LISTED)


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_a_script_of_the_gallery_draws_its_picture(script, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.get_fignums())))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(script), run_name="__main__")
    plt.close("all")
    assert shown == [1]


def test_the_gallery_is_large_enough():
    assert len(EXAMPLES) >= 8
