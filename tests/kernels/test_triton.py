"""Promise: the Triton backend computes the equations, its kernels compile for GPUs, and it reports its devices."""

import importlib.util
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cyclofocal import kernels
from cyclofocal.kernels import triton_backend

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
FREE = {"TRITON_INTERPRET", kernels.FORCE}


def environment():
    """Return the environment without any choice of a backend."""
    return {name: value for name, value in os.environ.items() if name not in FREE}


@needs_triton
def test_the_cases():
    """Run on a GPU or in Triton's interpreter, which must be chosen before the kernels are imported."""
    interpret = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    cases = Path(__file__).with_name("triton_cases.py")
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "-W", "ignore:::triton", str(cases)]
    run = subprocess.run(command, env=environment() | interpret, capture_output=True, text=True)
    if run.returncode == pytest.ExitCode.NO_TESTS_COLLECTED:
        pytest.skip(run.stdout)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


def compiled(kernel, target, pointers, **constants):
    """Compile a kernel from the types of its arguments."""
    import triton
    from triton.backends.compiler import GPUTarget

    signature, values = {}, {}
    for parameter in kernel.params:
        if parameter.is_constexpr or parameter.name in constants:
            values[parameter.name] = constants.get(parameter.name, True)
            signature[parameter.name] = "constexpr"
        else:
            signature[parameter.name] = pointers.get(parameter.name) or parameter.annotation_type or "i32"
    source = triton.compiler.ASTSource(kernel, signature, values)
    return triton.compile(source, target=GPUTarget(*target))


def assembled(ptx, capability, folder):
    """Registers of a thread, and bytes that it spills, as the assembler that triton brings reports them."""
    import triton

    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    (folder / "kernel.ptx").write_text(ptx)
    name = f"--gpu-name=sm_{capability}{'a' if capability == 90 else ''}"
    command = [str(assembler), "-v", name, "kernel.ptx", "-o", "kernel.cubin"]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr
    return int(re.search(r"Used (\d+) registers", said)[1]), sum(map(int, re.findall(r"(\d+) bytes spill", said)))


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter does not compile")
@pytest.mark.parametrize("target", [("cuda", 80, 32), ("cuda", 90, 32), ("hip", "gfx942", 64)], ids=str)
def test_the_kernels_compile_for_a_gpu_that_need_not_be_here(target, tmp_path, monkeypatch):
    """The interpreter knows neither types nor shapes that a compiler refuses."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend

    from cyclofocal.kernels.triton_indices import softmax_by_index
    from cyclofocal.kernels.triton_probabilities import softmax_by_probabilities
    from cyclofocal.kernels.triton_sigmoid import sigmoid_by_element

    try:
        make_backend(GPUTarget(*target)).hash()  # asks the assembler for its version; triton 3.2 has none for hip
    except Exception as error:
        pytest.skip(f"this triton does not compile for {target[0]}: {error}")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    exponents = {"POS": 2, "NEG": -1, "HC": 3}
    tile = {"ROWS": 2, "BLOCK": 128, "ALIGNED": 4, "class_stride": 1, "LOWEST": torch.finfo(torch.float32).min}
    one = dict.fromkeys(("BLOCK", "ROWS", "ALIGNED", "classes", "positions", "tiles"), 1) | {"SMOOTHED": False}
    none = dict.fromkeys(("weight", "denominator", "eta_pointer", "grad"))
    names = ("target", "weight", "pos_weight", "denominator", "eta_pointer", "loss")
    floats = dict.fromkeys(names, "*fp32") | {"logits": "*bf16", "grad": "*bf16"}
    indices = floats | {"target": "*i64", "denominator": "*i64"}
    for kernel, pointers, constants in (
        (softmax_by_index, indices, exponents | tile),
        (softmax_by_index, indices, exponents | tile | one | none),
        (softmax_by_probabilities, floats, exponents | tile),
        (sigmoid_by_element, floats, exponents | {"BLOCK": 1024}),
    ):
        program = compiled(kernel, target, pointers, **constants)
        assert program.kernel
        if target[0] == "cuda":
            found = set(re.findall(r"^\s*(?:@\S+ )?(\w[\w.]*f64[\w.]*)", program.asm["ptx"], re.MULTILINE))
            assert found <= {"cvt.rn.f32.f64"}  # of arguments; a GPU takes up to 64 times as long in float64
            registers, spilled = assembled(program.asm["ptx"], target[1], tmp_path)
            assert not spilled
            assert registers <= (64 if kernel is not sigmoid_by_element else 255)
        assert all(p.do_not_specialize for p in kernel.params if p.annotation_type)  # one program for all numbers


@pytest.fixture
def _new_process(monkeypatch):
    """Clear the caches, as in a new process."""
    caches = (kernels._backend, triton_backend._import_problem)
    monkeypatch.setattr(kernels, "forced_backend", "")
    for name, cache in itertools.product(FREE, caches):
        monkeypatch.delenv(name, raising=False)
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@needs_triton
@pytest.mark.usefixtures("_new_process")
def test_it_says_where_it_can_serve(monkeypatch):
    if not torch.cuda.is_available():
        report = kernels.describe()
        assert report["triton"] == "torch sees no GPU (CUDA or ROCm)"
        assert report["cuda"] == "plain"
        assert report["cpu"] != "triton"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    report = kernels.describe()
    assert report["triton"] == "available"
    assert report["cpu"] != "triton"  # unless it is asked for
    monkeypatch.setattr(kernels, "forced_backend", "triton")
    assert kernels.describe()["cpu"] == "triton"
    with pytest.raises(RuntimeError, match=r"cannot serve tensors on mps: it is for GPUs \(or the CPU"):
        kernels.backend("mps")


def test_without_triton_the_plain_version_serves():
    code = (
        "import sys; sys.modules['triton'] = None; from cyclofocal import kernels; report = kernels.describe();"
        "print(report['triton'], report['cuda'], sep='; ')"
    )
    run = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "triton is not installed; plain"
