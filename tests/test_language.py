"""Promise: source, docs and test names are in plain English; CONTRIBUTING.md gives the rule."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src/cyclofocal"
LONGEST_TEST_NAME = 60

FRAGMENT = re.compile(r"\W*(Of|What|Where|Whether|How|So)\b")
"""A first line that hangs on the name above it, in place of an imperative sentence or a noun phrase."""

SUBSTITUTES = {
    r"told|tells?|telling": "report, print, say",
    r"kept": "saved, stored",
    r"so[ -]many|so-manieth": "a number, every n-th",
    r"anew": "again, from scratch",
    r"likewise": "also, the same",
    r"beside": "next to, in addition to",
    r"(?:go|goes|went|going) on": "continue, resume",
    r"of (?:one|one's|your|its|their|his|our|\w+ \w+'s) own": "user-defined, custom, its own ...",
    r"at hand": "available",
    r"to be had": "available",
    r"hand(?:s|ed|ing)? over": "pass",
    r"what (?:is|was|are|were) (?:\w+ed|\w+wn|\w+en|done|found|kept|left|made|meant|read|said|set|told)": "a noun",
}
"""Words and turns that do not occur, and what to write instead."""

SEARCHED = {re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE): instead for pattern, instead in SUBSTITUTES.items()}


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of every docstring, message, help string and comment; of other files every line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), start=1)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, " ".join(node.value.split())
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def opening_sentences(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of every docstring, string below an assignment, and help string."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) or (isinstance(node, ast.keyword) and node.arg == "help"):
            text = node.value.values[0] if isinstance(node.value, ast.JoinedStr) else node.value
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield text.lineno, text.value.strip()


def fragments() -> list[tuple[Path, str]]:
    """Docstrings and help strings of the source that open with a fragment."""
    return [
        (path, f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}")
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in opening_sentences(path)
        if FRAGMENT.match(text)
    ]


def odd_words() -> list[tuple[Path, str]]:
    """Sentences of source and docs with a word that has a plain substitute."""
    sources = [path for suffix in ("py", "cpp", "html", "js", "css") for path in sorted(PACKAGE.rglob(f"*.{suffix}"))]
    return [
        (path, f"{path.relative_to(ROOT)}:{line}: {found[0]!r} (instead: {instead}) in {_around(text, found)}")
        for path in [*sources, *sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
        for line, text in prose(path)
        for pattern, instead in SEARCHED.items()
        for found in pattern.finditer(text)
    ]


def _around(text: str, found: re.Match[str]) -> str:
    return text[max(0, found.start() - 40) : found.end() + 40]


def long_test_names() -> list[tuple[Path, str]]:
    """Tests whose name is longer than a line of a report shows."""
    return [
        (path, f"{path.relative_to(ROOT)}: {name} ({len(name)} characters)")
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
        if len(name) > LONGEST_TEST_NAME
    ]


@pytest.mark.parametrize("offences", [fragments, odd_words, long_test_names])
def test_plain_english(offences):
    found = [offence for _, offence in offences()]
    assert not found, "\n".join(found)


def test_the_rule_finds_what_it_forbids():
    for text in ("Of everything.", "What is measured", "``Whether`` it holds"):
        assert FRAGMENT.match(text)
    for text in ("what is drawn", "so many rounds", "a loss of your own", "a loss of the reader's own", "it goes on"):
        assert any(pattern.search(text) for pattern in SEARCHED), text
    assert not FRAGMENT.match("Whatever the size, return it.")
