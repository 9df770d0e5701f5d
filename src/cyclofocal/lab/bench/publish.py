"""``python -m cyclofocal.lab.bench.publish RECORDS PAGE...``: pages and picture made anew from stored records."""

from pathlib import Path
from typing import Annotated

import typer

from cyclofocal.lab.bench.figure import draw
from cyclofocal.lab.bench.record import read
from cyclofocal.lab.bench.tables import paste


def publish(
    records: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What cyclofocal bench --out wrote.")],
    pages: Annotated[
        list[Path] | None, typer.Argument(exists=True, dir_okay=False, help="Markdown with places for tables.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="A .png or .svg, of the first setting in the records.")] = None,
) -> None:
    """Put the tables of the records into every page, and draw the picture."""
    found = read(records)
    for page in pages or ():
        paste(page, found)
    if picture is not None:
        draw(found, picture)


if __name__ == "__main__":
    typer.run(publish)
