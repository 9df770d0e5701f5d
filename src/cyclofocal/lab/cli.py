"""The command ``cyclofocal``."""

import sys
from importlib.util import find_spec

NEEDED = ("jinja2", "matplotlib", "numpy", "orjson", "rich", "scipy", "sklearn", "typer")


def main() -> None:
    """Run the command line; without the lab's packages, say how to get them."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        sys.exit(f"cyclofocal: the lab needs {', '.join(missing)}. From a clone: pip install '.[lab]'")
    from cyclofocal.lab.commands import app

    app()


if __name__ == "__main__":
    main()
