"""What a command says of its runs: once, by the main process, and what goes wrong in a line."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from cyclofocal.lab.course import never_focal
from cyclofocal.lab.recipes.recipe import LossSettings, Recipe

if TYPE_CHECKING:
    from cyclofocal.lab.data import Images


def is_main() -> bool:
    """Whether this process speaks for all of them."""
    return int(os.environ.get("RANK", "0")) == 0


def tell_never_focal(pairs: Iterable[tuple[Recipe, LossSettings]]) -> None:
    """Say before any training which losses will not meet their focal phase."""
    if is_main():
        for said in dict.fromkeys(never_focal(recipe, loss) for recipe, loss in pairs):
            if said:
                Console(stderr=True, highlight=False).print(said, style="yellow", markup=False, soft_wrap=True)


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


def warn_of_copies(title: str, splits: Mapping[str, "Images | None"]) -> None:
    """Warn, in the main process, of images that are equal byte for byte in two splits or two classes."""
    from cyclofocal.lab.data.check import copies

    if is_main():
        console = Console(stderr=True, highlight=False)
        for fault in copies(splits).faults:
            console.print(f"warning: {title}: {fault}", style="yellow", markup=False, soft_wrap=True)
