"""``python -m cyclofocal.lab.bench.publish RECORDS PAGE...``: update tables and figure from stored records."""

from pathlib import Path
from typing import Annotated

import typer

from cyclofocal.lab.bench.figure import draw_speed
from cyclofocal.lab.bench.record import read_measurements
from cyclofocal.lab.bench.tables import paste


def publish_speed(
    records: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="Records written by cyclofocal bench --out.")
    ],
    pages: Annotated[
        list[Path] | None, typer.Argument(exists=True, dir_okay=False, help="Markdown files with markers for tables.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Figure of the first setting in the records; .png or .svg.")
    ] = None,
) -> None:
    """Update the tables of every page, and draw the figure."""
    found = read_measurements(records)
    for page in pages or ():
        paste(page, found)
    if picture is not None:
        draw_speed(found, picture)


if __name__ == "__main__":
    typer.run(publish_speed)
