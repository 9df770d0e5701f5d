"""The command ``cyclofocal``."""

import sys
from importlib.util import find_spec

NEEDED = ("jinja2", "matplotlib", "numpy", "orjson", "rich", "scipy", "sklearn", "typer")


def main() -> None:
    """Run the command line; without the lab's packages, say how to get them. Report a file that fails in one line."""
    missing = [name for name in NEEDED if find_spec(name) is None]
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
