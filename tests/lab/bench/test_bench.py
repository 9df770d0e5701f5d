"""Promise: the benchmark measures the losses it names, stores the results, and refuses what it cannot measure."""

import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from cyclofocal import binary_cyclical_focal_loss, cyclical_focal_loss, kernels
from cyclofocal.lab.bench import candidates as known
from cyclofocal.lab.bench.layer import layer_candidates
from cyclofocal.lab.bench.measure import Case, measure, peak_bytes
from cyclofocal.lab.bench.record import append_measurements, measurements, read_measurements
from cyclofocal.lab.bench.tables import markdown_speed, paste, shape_table
from cyclofocal.lab.commands import app
from cyclofocal.lab.report.table import to_terminal

LOSS = "import torch.nn.functional as F\ndef mine(logits, target):\n    return F.cross_entropy(logits, target)\n"


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """One tiny run of the command with a loss of the user's."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "loss.py").write_text(LOSS)
    arguments = ("--shape", "8x5", "--rounds", 2, "--default-heap", "--device", "cpu", "--against", folder / "loss.py")
    result = bench(*arguments, "--out", folder / "b.jsonl", "--picture", folder / "b.png")
    assert result.exit_code == 0, result.output
    return folder, result


def test_command_shows_stores_and_draws(command):
    folder, result = command
    records = {record.loss: record for record in read_measurements(folder / "b.jsonl")}
    assert "loss.py:mine" in result.output
    assert {"torch cross_entropy", "cyclofocal, plain", "loss.py:mine"} <= set(records)
    own = records["loss.py:mine"]
    assert own.shape == [8, 5]
    assert records["torch cross_entropy"].rounds == 2
    assert own.rounds in (1, 2)  # a loss that seems slow at first, on a busy machine, sits rounds out
    assert own.ratio is not None
    assert own.ratio[0] <= own.ratio[1] <= own.ratio[2]
    assert records["torch cross_entropy"].ratio == [1.0, 1.0, 1.0]
    assert {"python", "torch", "cyclofocal"} <= set(own.versions)
    assert (folder / "b.png").stat().st_size > 10_000


def test_every_number_is_whole_on_a_narrow_terminal(command):
    folder, _ = command
    (first, *_) = records = read_measurements(folder / "b.jsonl")
    ratio = [0.00123, 0.00456, 0.00789]
    wide = [replace(record, rounds=3, milliseconds=ratio, ratio=ratio) for record in records if not record.skipped]
    file = io.StringIO()
    Console(file=file, width=80).print(to_terminal(shape_table(wide), tight=True))
    assert first.shape_title in file.getvalue()
    assert file.getvalue().count("0.00456 (0.00123..0.00789) 0.0046 (0.0012..0.0079)") == len(wide)


def test_a_page_is_filled_from_the_records(command):
    folder, _ = command
    page = folder / "page.md"
    page.write_text("before\n<!-- speed: table -->\nold\n<!-- end of speed -->\nafter\n")
    paste(page, read_measurements(folder / "b.jsonl"))
    text = page.read_text()
    assert "old" not in text
    assert "loss.py:mine" in text
    assert text.startswith("before")
    assert text.endswith("after\n")
    with pytest.raises(ValueError, match="has no place"):
        paste(folder / "loss.py", read_measurements(folder / "b.jsonl"))


def test_memory_is_the_peak_and_not_what_is_left():
    """Two buffers of 1 MiB at once, one of them freed again."""

    def step():
        kept = torch.empty(2**18)
        torch.empty(2**18)
        return kept

    assert peak_bytes(step, "cpu") == 2 * 2**20


@pytest.mark.parametrize("loss", [cyclical_focal_loss, binary_cyclical_focal_loss])
def test_the_plain_version_takes_little_memory(loss, monkeypatch):
    monkeypatch.setattr(kernels, "forced_backend", "plain")
    logits = torch.randn(4096, 1000, requires_grad=True)
    target = torch.zeros(4096, dtype=torch.int64) if loss is cyclical_focal_loss else torch.zeros(4096, 1000)

    def step():
        return torch.autograd.grad(loss(logits, target, eta=0.5, label_smoothing=0.1), logits)

    assert peak_bytes(step, "cpu") <= 2 * 4 * logits.numel()


def test_last_layers_are_measured_with_their_own_reference(tmp_path):
    result = bench("--layer", "16x4x9", "--rounds", 2, "--device", "cpu", "--out", tmp_path / "b.jsonl")
    assert result.exit_code == 0, result.output
    records = {record.loss: record for record in read_measurements(tmp_path / "b.jsonl")}
    assert set(records) >= {"torch linear + cross_entropy", "linear + cyclofocal, native", "cyclofocal linear, native"}
    assert {record.family for record in records.values()} == {"layer"}
    (reference,) = (record for record in records.values() if record.ratio == [1.0, 1.0, 1.0])
    assert reference.loss == "torch linear + cross_entropy"
    assert "memory, 16 x 4 x 9" in markdown_speed(list(records.values()))


def test_layers_differ_in_time_only():
    """Every candidate with the same loss returns the same gradients."""
    problem = Case((16, 4, 9), "float32", is_layer=True).problem("cpu")
    steps = {c.title: c.prepare(problem)() for c in layer_candidates("cpu", compiled_too=False)}
    for title, gradients in steps.items():
        expected = steps["linear + cyclofocal, native" if "cyclofocal" in title else "torch linear + cross_entropy"]
        torch.testing.assert_close(gradients, expected)


def test_a_compiled_loss_returns_the_same_gradients(monkeypatch):
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda loss, **_: compile(loss, backend="aot_eager"))
    problem = Case((8, 3), "float32").problem("cpu")
    found = [c for c in known.candidates("cpu") + known.compiled_candidates("cpu") if c.family == "softmax"]
    steps = {c.title: c.prepare(problem) for c in found if c.package in ("torch", "cyclofocal")}
    for title in ("torch cross_entropy", "torch cross_entropy, smoothed"):
        torch.testing.assert_close(steps[f"{title}, compiled"](), steps[title]())
    torch.testing.assert_close(steps["cyclofocal, compiled, native"](), steps["cyclofocal, native"]())


def test_a_loss_that_fails_is_left_out_and_said_so(tmp_path):
    def broken(problem):
        return lambda: 1 / 0

    base, bad = known.candidates("cpu")[0], known.Candidate("broken", "", broken)
    results = measure(Case((4, 3), "float32"), [base, bad], "cpu", 0.0, rounds=1)
    assert results[1].milliseconds is None
    assert "ZeroDivisionError" in results[1].skipped
    append_measurements(measurements(Case((4, 3), "float32"), results, "cpu", "default"), tmp_path / "b.jsonl")
    assert "broken" in markdown_speed(read_measurements(tmp_path / "b.jsonl"))


def test_a_loss_too_large_for_the_memory_is_skipped(monkeypatch):
    case = Case((64, 1000), "float32")
    monkeypatch.setattr("cyclofocal.lab.bench.measure.LARGE_BYTES", 1)
    monkeypatch.setattr("cyclofocal.lab.bench.measure.TRIAL_BYTES", 2**16)
    monkeypatch.setattr("cyclofocal.lab.bench.measure._free_memory", lambda: 2**27)
    light = known.Candidate("light", "", lambda problem: lambda: problem.logits.sum())
    heavy = known.Candidate("heavy", "", lambda problem: lambda: problem.logits.repeat(2000, 1).sum())
    first, second = measure(case, [light, heavy], "cpu", seconds=0, rounds=2)
    assert first.rounds == 2
    assert "GiB of memory, where 0.1 GiB are free" in second.skipped


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "b.jsonl").write_text(json.dumps({"loss": "x"}) + "\n")
    with pytest.raises(ValueError, match=r"b\.jsonl, line 1: not a measurement"):
        read_measurements(tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--shape", "8"), "is not a shape"),
        (("--shape", "8x0"), "is not a shape"),
        (("--shape", "8x5:int8"), "is not a dtype"),
        (("--layer", "8x5"), "is not a layer"),
        (("--device", "tpu"), "must be cpu or cuda"),
        (("--against", "nowhere.py"), "no such file"),
        (("--against", "nowhere:mine"), "give PATH.py:FUNCTION"),
        (("--picture", "speed.pdf"), r"must end in .png or .svg"),
    ],
    ids=str,
)
def test_refused_before_anything_is_measured(arguments, said, tmp_path):
    result = bench(*arguments, "--out", tmp_path / "b.jsonl")
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "b.jsonl").exists()
