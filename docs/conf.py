"""Sphinx configuration of the site, which ``make docs`` builds.

The pages are Markdown that also works in the repository. Here their links to files outside of ``docs/`` become links to
pages of the site, pages that only point to a file of the repository become that file, and every link of the built site
is checked.
"""

import os
import re
import sys
import types
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

DOCS = Path(__file__).parent
ROOT = DOCS.parent
os.environ.setdefault("OMP_NUM_THREADS", "2")
sys.path.insert(0, str(ROOT / "src"))

import cyclofocal  # noqa: E402
from cyclofocal.integrations import host  # noqa: E402

host.require_host = lambda *args, **options: None  # the frameworks are mocked
sys.modules["jax.typing"] = types.ModuleType("jax.typing")
sys.modules["jax.typing"].__dict__["ArrayLike"] = type("ArrayLike", (), {})  # a mock has no "| None"

project = "cyclofocal"
author = "The cyclofocal authors"
version = release = cyclofocal.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["gallery/*.ipynb", "gallery/*.py"]
suppress_warnings = ["toc.empty_glob"]

myst_enable_extensions = ["colon_fence", "dollarmath", "amsmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
myst_url_schemes = {"http": None, "https": None, "mailto": None, "site": "{{path}}"}

autodoc_mock_imports = [
    "accelerate",
    "jax",
    "keras",
    "lightgbm",
    "lightning",
    "skorch",
    "timm",
    "transformers",
    "xgboost",
]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": "plot_",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_signature": False,
    "min_reported_time": 1e9,
    "write_computation_times": False,
    "plot_gallery": os.environ.get("GALLERY", "1") == "1",
}

html_theme = "furo"
html_title = f"cyclofocal {release}"
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_extra_path = ["explorer.html", "../results/imbalance.html"]
html_static_path = ["site.css"]
html_css_files = ["site.css"]

PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "results/PLAN.md": "plan.md",
}
"""Files of the repository, and their pages on the site."""


def replace_links(app: Sphinx, docname: str, source: list[str]) -> None:
    """Take a page from its file outside of ``docs/``, and lead links out of ``docs/`` to the pages of the site."""
    outside = next((name for name, page in PAGES.items() if page == f"{docname}.md" != "index.md"), "")
    if outside:
        app.env.note_dependency(str(ROOT / outside))
        source[0] = (ROOT / outside).read_text(encoding="utf-8")
    folder = (ROOT / outside).parent if outside else DOCS

    def to_site(link: re.Match[str]) -> str:
        target = link[1]
        if urlsplit(target).scheme or target.startswith("#"):
            return link[0]
        path, _, anchor = target.partition("#")
        name = os.path.relpath(folder / path, ROOT)
        if name in PAGES:
            path = PAGES[name]
        elif Path(name).name in {Path(extra).name for extra in html_extra_path}:
            return f"](site:{Path(name).name})"
        else:
            path = os.path.relpath(folder / path, DOCS)
        return f"]({path}#{anchor})" if anchor else f"]({path})"

    source[0] = re.sub(r"\]\(([^()\s]+)\)", to_site, source[0])


def visit_math(self: Any, node: nodes.Element) -> None:
    """Write a formula as MathML, which browsers draw without a script or the network."""
    block = isinstance(node, nodes.math_block)
    lines = [line.strip() for line in re.split(r"\n\s*\n", node.astext()) if line.strip()]
    text = r" \\ ".join(lines)
    if len(lines) > 1 or (block and "&" in text and r"\begin" not in text):
        text = rf"\begin{{aligned}}{text}\end{{aligned}}"
    formula = convert(text, display="block" if block else "inline")
    self.body.append(f'<div class="formula">{formula}</div>' if block else formula)
    raise nodes.SkipNode


class Links(HTMLParser):
    """Collect the targets that a page links to, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := given.get(name))}
        self.targets |= {value for name in ("href", "src") if (value := given.get(name))}


def check_links(app: Sphinx, exception: Exception | None) -> None:
    """Raise an error for links of the built pages that lead to no file or anchor, and for files of other sites."""
    if exception or app.builder.name != "html":
        return
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in Path(app.outdir).rglob("*.html")}
    broken = sorted({f"{path.name}: {target}" for path in pages for target in _broken(path, pages)})
    if broken:
        raise ExtensionError("broken links:\n" + "\n".join(broken))


def _broken(page: Path, pages: dict[Path, Links]) -> list[str]:
    found = []
    for target in pages[page].targets:
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            continue
        path = Path(os.path.normpath(page.parent / unquote(parts.path))) if parts.path else page
        path = path / "index.html" if path.is_dir() else path
        anchors = pages[path].anchors if path in pages else set()
        if not path.exists() or (parts.fragment and path in pages and unquote(parts.fragment) not in anchors):
            found.append(target)
    return found


def find_public_name(app: Sphinx, env: Any, node: nodes.Element, content: nodes.Element) -> nodes.Element | None:
    """Resolve a reference to the module of a public name, which the reference lists as ``cyclofocal.NAME``."""
    name = node.get("reftarget", "").rpartition(".")[2]
    if node.get("refdomain") != "py" or name not in cyclofocal.__all__:
        return None
    domain, source = env.get_domain("py"), node.get("refdoc", "")
    return domain.resolve_xref(env, source, app.builder, node["reftype"], f"cyclofocal.{name}", node, content)


def setup(app: Sphinx) -> None:
    """Register what this site adds to Sphinx."""
    app.connect("source-read", replace_links)
    app.connect("missing-reference", find_public_name)
    app.connect("build-finished", check_links)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
