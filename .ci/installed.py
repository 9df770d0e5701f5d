"""Run the library's tests against the installed package, in a folder outside of the repository.

``python .ci/installed.py REPOSITORY [--native | --plain]``; ``--native`` and ``--plain`` check that the native library
is in the package, or is not.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE_ONLY = {"documents", "explorer", "imports", "language", "loss_page", "names", "release", "site"}
"""Tests of the repository, not of the package."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the library's tests against the installed package.")
    parser.add_argument("repository", type=Path, help="Folder with tests/ and pyproject.toml.")
    parser.add_argument("--native", action="store_true", help="Fail if the native library is missing.")
    parser.add_argument("--plain", action="store_true", help="Fail if the native library is there.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("docs", "tests"):
            shutil.copytree(options.repository / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(options.repository / "pyproject.toml", folder)
        run = [
            sys.executable,
            "-c",
            "from cyclofocal.kernels import native; print(native.__file__, native.available())",
        ]
        file, available = subprocess.run(run, cwd=folder, check=True, capture_output=True, text=True).stdout.split()
        print(file, "native:", available, flush=True)
        if options.repository.resolve() in Path(file).resolve().parents:
            raise SystemExit(f"{file} is the repository, not an installed package")
        if (options.native and available != "True") or (options.plain and available == "True"):
            raise SystemExit(f"the native library is available: {available}")
        tests = [
            str(path) for path in folder.glob("tests/test_*.py") if path.stem.removeprefix("test_") not in HERE_ONLY
        ]
        return subprocess.run([sys.executable, "-m", "pytest", *sorted(tests), "tests/kernels"], cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main())
