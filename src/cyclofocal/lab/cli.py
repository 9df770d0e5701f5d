"""Entry point of the command ``cyclofocal``."""

import sys
from importlib.util import find_spec

REQUIRED_PACKAGES = ("jinja2", "matplotlib", "numpy", "orjson", "rich", "scipy", "sklearn", "typer")


def main() -> None:
    """Run the command line; report missing packages and file errors in one line."""
    missing = [name for name in REQUIRED_PACKAGES if find_spec(name) is None]
    if missing:
        sys.exit(f"cyclofocal: the lab needs {', '.join(missing)}. From a clone: pip install '.[lab]'")
    from cyclofocal.lab.commands import app
    from cyclofocal.lab.commands.output import one_line

    try:
        app()
    except OSError as error:
        sys.exit(f"cyclofocal: {one_line(error)}")


if __name__ == "__main__":
    main()
