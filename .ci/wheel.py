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


def test(archive: Path, torch: str) -> None:
    """Install an archive with this torch in an empty environment, and run the library's tests there."""
    plain = archive.name.endswith("-any.whl")
    with tempfile.TemporaryDirectory() as name:
        venv.create(name, with_pip=True)
        python = Path(name) / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*pip, archive, *torch.split(), "hypothesis", "numpy", "pytest", CYCLOFOCAL_NATIVE="require")
        run(python, ROOT / ".ci/installed.py", ROOT, "--plain" if plain else "--native")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", default="torch", help="Requirement of torch in the environments; default: torch.")
    options = parser.parse_args()
    build()
    for archive in sorted(DIST.iterdir()):
        test(archive, options.torch)


if __name__ == "__main__":
    main()
