"""``cyclofocal bench``: check the arguments, then measure, store and print shape by shape."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from cyclofocal.lab.bench.candidates import Candidate, candidates, compiled_candidates, user_candidate
from cyclofocal.lab.bench.layer import layer_candidates
from cyclofocal.lab.bench.measure import Case, can_warm_heap, keep_heap, measure
from cyclofocal.lab.bench.record import Measurement, append_measurements, measurements
from cyclofocal.lab.bench.tables import shape_table, skipped_losses
from cyclofocal.lab.commands.options import check_choice, make_folder, picture_path, refused
from cyclofocal.lab.commands.output import LOOSE_COLUMNS, table_console
from cyclofocal.lab.report.table import to_terminal

DTYPES = ["float32", "float64", "bfloat16", "float16"]
SHAPES = ("384x10", "128x1000", "4096x1000", "512x21843", "1024x100000", "8x19x256x256")
GPU_SHAPES = ("8192x32000:bfloat16",)
SECONDS_PER_SHAPE = 10.0


def _dtype(name: str) -> str:
    return check_choice(name, DTYPES, "dtype")


def _shapes(texts: list[str] | None) -> list[str] | None:
    for text in texts or ():
        parse_case(text, "float32")
    return texts


def _layers(texts: list[str] | None) -> list[str] | None:
    for text in texts or ():
        parse_case(text, "float32", is_layer=True)
    return texts


def parse_case(text: str, dtype: str, *, is_layer: bool = False) -> Case:
    """Parse ``128x1000``, or ``128x1000:bfloat16`` to override the dtype."""
    sizes, _, override = text.partition(":")
    try:
        shape = tuple(int(size) for size in sizes.lower().split("x"))
    except ValueError:
        shape = ()
    if is_layer and (len(shape) != 3 or min(shape) < 1):
        raise typer.BadParameter(
            f"{text!r} is not a layer; it must be samples x features x classes, like 4096x512x32000."
        )
    if len(shape) < 2 or min(shape) < 1:
        raise typer.BadParameter(
            f"{text!r} is not a shape; it must be samples x classes, like 128x1000, or 8x19x256x256 for images."
        )
    return Case(shape, _dtype(override) if override else dtype, is_layer)


def _device(name: str | None) -> str:
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise typer.BadParameter(f"{name!r} is not a supported device; it must be cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("CUDA is not available; use --device cpu.")
    return name


def _losses(device: str, against: list[str] | None, *, compiled_too: bool) -> list[Candidate]:
    """Losses of logits."""
    with refused("--against"):
        own = [user_candidate(spec) for spec in against or ()]
    return [*candidates(device), *(compiled_candidates(device) if compiled_too else ()), *own]


def bench(
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHAPE",
            help=f"Shape of the logits, such as 128x1000; repeatable. Default: {', '.join(SHAPES)}.",
            callback=_shapes,
        ),
    ] = None,
    *,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER",
            help="Last layer to measure together with its loss, such as 4096x512x32000 (samples x features x classes);"
            " repeatable. The default shapes of logits are then left out.",
            callback=_layers,
        ),
    ] = None,
    compiled_too: Annotated[
        bool, typer.Option("--compile", help="Measure losses compiled by torch.compile as well.")
    ] = False,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help=f"Dtype of the logits: {', '.join(DTYPES)}.", callback=_dtype)
    ] = "float32",
    device: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="Device: cpu or cuda; default: cuda if available.", callback=_device),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LOSS",
            help="Your own loss to measure as well: [NAME=]PATH.py[:FUNCTION], a function of (logits, target) or a"
            " torch module; repeatable.",
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="Measuring time per shape.")] = SECONDS_PER_SHAPE,
    rounds: Annotated[int | None, typer.Option(min=1, help="Number of rounds per shape; overrides --seconds.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Number of CPU threads; default: torch's.")] = None,
    warm_heap: Annotated[
        bool | None,
        typer.Option(
            "--warm-heap/--default-heap",
            help="Retain freed memory in the process, or return it to the system, as glibc does. Default: warm.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(dir_okay=False, help="File that the records are appended to.")] = Path(
        "runs/bench.jsonl"
    ),
    picture: Annotated[Path | None, typer.Option(help="Figure to write; .png or .svg.", callback=picture_path)] = None,
) -> None:
    """Measure time and memory of forward and backward of cyclofocal's and other losses.

    The losses are interleaved in one process and compared round by round with torch's cross_entropy, sigmoid losses
    with its BCE with logits.
    """
    assert device is not None
    default = () if layer else SHAPES + GPU_SHAPES * (device == "cuda")
    cases = [parse_case(text, dtype) for text in shape or default]
    cases += [parse_case(text, dtype, is_layer=True) for text in layer or ()]
    losses = _losses(device, against, compiled_too=compiled_too)
    layers = layer_candidates(device, compiled_too=compiled_too)
    for file, option in ((out, "--out"), (picture, "--picture")):
        if file is not None:
            make_folder(file.parent, option)
    heap = _configure_process(warm_heap, threads)
    console = table_console()
    records = []
    for case in cases:
        typer.echo(f"measuring {case.title}, {case.dtype} ...", err=True)
        present = [loss for loss in (layers if case.is_layer else losses) if loss.installed]
        results = measure(case, present, device, seconds, rounds)
        found = measurements(case, results, device, heap)
        append_measurements(found, out)
        records += found
        _show(console, found)
    _close(console, losses, records, picture)
    typer.echo(f"records  {out}")


def _configure_process(warm: bool | None, threads: int | None) -> str:
    """Set threads and heap for the rest of the process; return the state of the heap."""
    if warm and not can_warm_heap():
        raise typer.BadParameter("the C library is not glibc; use --default-heap.", param_hint="--warm-heap")
    if threads is not None:
        torch.set_num_threads(threads)
    if warm or (warm is None and can_warm_heap()):
        keep_heap()
        return "warm"
    return "default"


def _show(console: Console, records: list[Measurement]) -> None:
    for family in dict.fromkeys(record.family for record in records):
        table = shape_table([record for record in records if record.family == family])
        console.print(to_terminal(table, tight=console.width < LOOSE_COLUMNS))
    for line in skipped_losses(records):
        console.print(line, style="dim", markup=False, soft_wrap=not console.is_terminal)
    console.print()


def _close(console: Console, losses: list[Candidate], records: list[Measurement], picture: Path | None) -> None:
    if missing := [loss.package for loss in losses if not loss.installed]:
        typer.echo(f"not installed: {', '.join(missing)} (from a clone: pip install '.[bench]')")
    if picture is not None:
        from cyclofocal.lab.bench.figure import draw_speed

        draw_speed(records, picture)
        typer.echo(f"picture  {picture}")
