"""Promise: a build reports the one version, and a release of a platform never lacks the native library."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import cyclofocal

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _build(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Build a wheel of a small copy of the package, without isolation and thus without the network."""
    (folder / "src/cyclofocal/kernels").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "src/cyclofocal/__init__.py"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    (folder / "src/cyclofocal/kernels/__init__.py").touch()
    (folder / "src/cyclofocal/kernels/native.cpp").write_text('extern "C" int one() { return 1; }\n')
    command = [sys.executable, "setup.py", "-q", "bdist_wheel"]
    return subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)


def _wheel(folder: Path) -> Path:
    [wheel] = (folder / "dist").glob("*.whl")
    return wheel


def test_the_library_is_in_a_wheel_of_the_platform(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    done = _build(tmp_path, CYCLOFOCAL_NATIVE="require")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"cyclofocal-{cyclofocal.__version__}-py3-none-(?!any).+\.whl", _wheel(tmp_path).name)
    assert "cyclofocal/kernels/_native.so" in zipfile.ZipFile(_wheel(tmp_path)).namelist()


def test_without_a_compiler_only_a_release_fails(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    for native, succeeds in (("optional", True), ("require", False), ("skip", True)):
        done = _build(tmp_path / native, CYCLOFOCAL_NATIVE=native, CC=str(tmp_path / "no-compiler"))
        assert (done.returncode == 0) == succeeds, done.stderr
        assert (tmp_path / native / "dist").exists() == succeeds
        assert ("no-compiler" in done.stderr) == (native != "skip")
    for native in ("optional", "skip"):
        names = zipfile.ZipFile(_wheel(tmp_path / native)).namelist()
        assert "cyclofocal/kernels/native.cpp" not in names
        assert not [name for name in names if name.endswith(".so")]
    assert _wheel(tmp_path / "skip").name == f"cyclofocal-{cyclofocal.__version__}-py3-none-any.whl"


def test_release_builds_require_the_library():
    assert PROJECT["tool"]["cibuildwheel"]["environment"] == {"CYCLOFOCAL_NATIVE": "require"}
    assert 'CYCLOFOCAL_NATIVE="require"' in (ROOT / ".ci/wheel.py").read_text()


def test_actions_are_pinned_by_commit():
    uses = [
        line.partition("uses: ")[2]
        for path in (ROOT / ".github/workflows").glob("*.yml")
        for line in path.read_text().splitlines()
        if "uses: " in line
    ]
    assert len(uses) > 10
    assert [line for line in uses if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


def test_an_unknown_choice_is_refused(tmp_path):
    done = _build(tmp_path, CYCLOFOCAL_NATIVE="yes")
    assert done.returncode != 0
    assert "CYCLOFOCAL_NATIVE is 'yes'; it must be optional (the default), require or skip" in done.stderr


def test_the_version_is_in_one_place():
    """Everything that is built or released reads ``cyclofocal.__version__``; the others state the same."""
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "cyclofocal.__version__"}
    changes, citation = ((ROOT / name).read_text() for name in ("CHANGELOG.md", "CITATION.cff"))
    heading = re.search(r"^## (.*)$", changes, re.MULTILINE)[1]
    assert cyclofocal.__version__ in heading
    assert not re.search(r"^version:", citation, re.MULTILINE)


def test_every_supported_python_has_a_classifier():
    project = PROJECT["project"]
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert project["requires-python"] == f">={named[0]}"
    support = (ROOT / "docs/support.md").read_text()
    assert f"Python | {named[0]} to {named[-1]}" in support
    assert f"torch | {project['dependencies'][0].partition('>=')[2]}" in support
