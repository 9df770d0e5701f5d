"""What a command says of its runs: once, by the main process, and what goes wrong in a line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console


def is_main() -> bool:
    """Whether this process speaks for all of them."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def told_in_a_line(kept: Path) -> Iterator[None]:
    """What goes wrong is told in one line; ``kept`` is where the work so far lies."""
    console = Console(stderr=True, highlight=False)
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"stopped: {kept} is kept, the same command continues", style="red", markup=False)
        raise typer.Exit(130) from None
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        console.print(f"stopped: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
