"""Build the source distribution and both kinds of wheels in ``dist/``, check and test them."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
TESTS = ("hypothesis", "numpy", "pandas", "pytest", "scikit-learn", "torchvision")
"""Packages that the library's tests import."""


def run(*command: str | Path, **environment: str) -> None:
    """Run a command in the repository, and stop if it fails."""
    print("+", *command, flush=True)
    subprocess.run([str(part) for part in command], cwd=ROOT, env=os.environ | environment, check=True)


def build() -> None:
    """Build everything that a release has, the native library included."""
    for folder in (DIST, ROOT / "build/lib", *(ROOT / "build").glob("bdist.*"), *(ROOT / "build").glob("lib.*")):
        shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST, CYCLOFOCAL_NATIVE="require")  # the wheel from the source
    run(sys.executable, "-m", "build", "--wheel", "--outdir", DIST, CYCLOFOCAL_NATIVE="skip")
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted(DIST.iterdir()))
    if sys.platform == "linux":
        run(sys.executable, "-m", "auditwheel", "show", *DIST.glob("*linux*.whl"))


def test(archives: list[Path], torch: str) -> None:
    """Install each archive next to torch and pytest alone, and run the library's tests against it."""
    with tempfile.TemporaryDirectory() as name:
        venv.create(name, with_pip=True)
        python = Path(name) / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        pip = (python, "-m", "pip", "--disable-pip-version-check")
        run(*pip, "install", "--quiet", *torch.split(), *TESTS)
        for archive in archives:
            install = (*pip, "install", "--quiet", "--force-reinstall", "--no-deps", archive)
            run(*install, CYCLOFOCAL_NATIVE="require")
            run(*pip, "check")
            run(python, ROOT / ".ci/installed.py", ROOT, "--plain" if "-any." in archive.name else "--native")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", default="torch", help="Requirement of torch in the environments; default: torch.")
    options = parser.parse_args()
    build()
    test(sorted(DIST.iterdir()), options.torch)


if __name__ == "__main__":
    main()
