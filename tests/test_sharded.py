"""Promise: with the classes spread over processes, loss and gradient are those of the joined logits."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cyclofocal.functional import cyclical_focal_loss
from cyclofocal.sharded import sharded_cyclical_focal_loss

CLASSES, ROWS = 13, 6
SIZES = {2: [9, 4], 4: [5, 0, 1, 7]}
T = [0, 12, 6, 3, 11, 3]
FACTOR = 2.5
CASES: dict[str, dict] = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "only smoothing": {"label_smoothing": 1.0, "eta": 0.0},
    "class weights": {"weighted": True},
    "class weights, smoothing": {"weighted": True, "label_smoothing": 0.2},
    "sum": {"reduction": "sum", "label_smoothing": 0.1},
    "none": {"reduction": "none", "weighted": True, "label_smoothing": 0.1},
    "eta 0": {"eta": 0.0, "label_smoothing": 0.1},
    "eta 1": {"eta": 1.0, "label_smoothing": 0.1},
    "eta as tensor": {"eta": torch.tensor(0.25), "label_smoothing": 0.1},
    "cross-entropy": {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0, "label_smoothing": 0.1, "weighted": True},
    "other exponents": {"gamma_pos": 0.5, "gamma_neg": 1.5, "gamma_hc": 2.5, "label_smoothing": 0.3},
    "ignored": {"target": [0, -100, 6, 3, -100, 3], "label_smoothing": 0.1, "weighted": True},
    "ignored class": {"ignore_index": 3, "label_smoothing": 0.1},
    "all ignored": {"target": [-100] * ROWS, "label_smoothing": 0.1},
    "a shard without targets": {"target": [0, 1, 0, 2, 3, 0], "label_smoothing": 0.1},
    "masked": {"masked": slice(10, 13), "target": [0, 9, 6, 3, 4, 3], "label_smoothing": 0.1, "eta": 0.0},
    "masked shard": {"masked": slice(6, 13), "target": [0, 5, 1, 3, 4, 3]},
    "masked target": {"masked": slice(12, 13), "reduction": "none"},
    "infinite": {"masked": slice(6, 7), "target": [0, 5, 1, 3, 4, 3], "label_smoothing": 0.1},
    "confident": {"scale": 60.0, "label_smoothing": 0.1},
    "large": {"shift": 3e4, "label_smoothing": 0.1},
    "no rows": {"rows": 0, "label_smoothing": 0.1, "reduction": "sum"},
    "sizes given": {"sizes": True, "label_smoothing": 0.1},
    "DTensor": {"placed": 1, "label_smoothing": 0.1, "weighted": True},
    "DTensor, none": {"placed": 1, "reduction": "none"},
    "DTensor, an empty shard": {"placed": 1, "classes": 5, "target": [0, 4, 3, 2, 2, 1], "label_smoothing": 0.1},
    "DTensor, two-dimensional mesh": {"placed": 2, "label_smoothing": 0.1},
    "DTensor, from an operation": {"placed": 1, "negated": True, "label_smoothing": 0.1},
    "offset": {"logit_offset": torch.linspace(-5, 2, CLASSES), "label_smoothing": 0.1},
    "offset, DTensor": {"logit_offset": torch.linspace(-5, 2, CLASSES), "placed": 1, "weighted": True},
    "bfloat16": {"dtype": torch.bfloat16, "label_smoothing": 0.1},
}
REFUSED: dict[str, dict] = {
    r"IndexError: target holds class 13 for 13 classes": {"target": [13] * ROWS},
    r"TypeError: target has dtype torch.float32; sharded logits take class indices": {"target": [0.5] * ROWS},
    r"ValueError: target has shape (5,)": {"target": [0] * 5},
    r"ValueError: class_weight has shape (13,); it must be (5,)": {"weighted": True, "classes": 5, "placed": 1},
    r"ValueError: logit_offset has shape (4,); it must be (13,)": {"logit_offset": torch.zeros(4)},
    r"ValueError: shard_sizes is [13]; for": {"sizes": [13]},
    r"ValueError: eta is 2.0": {"eta": 2.0},
    r"ValueError: logits is a DTensor, which knows its group": {"placed": 1, "sizes": True},
    r"ValueError: logits has [0, ": {"rows": "rank"},
    r"ValueError: class_weight requires a gradient": {"weighted": "requires grad"},
    r"RuntimeError: sharded_cyclical_focal_loss has no second derivative": {"create_graph": True},
}


def inputs(case, dtype):
    """Joined logits, targets and class weights: the same numbers in every process and, rounded, in every dtype."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(ROWS, CLASSES, generator=generator) * case.get("scale", 2.0) + case.get("shift", 0.0)
    weight = torch.rand(CLASSES, generator=generator) + 0.5 if case.get("weighted") else None
    rows = case.get("rows", ROWS)
    logits = logits[:rows, : case.get("classes", CLASSES)].to(case.get("dtype", dtype))
    logits[:, case.get("masked", slice(0))] = -torch.inf
    return logits, torch.tensor(case.get("target", T))[:rows], weight


def settings(case):
    own = ("eta", "gamma_pos", "gamma_neg", "gamma_hc", "ignore_index", "reduction", "label_smoothing", "logit_offset")
    return {"eta": 0.4} | {name: case[name] for name in own if name in case}


# --- what a process does -----------------------------------------------------------------------------------------


def run(case, dtype, rank, world):
    """Loss and gradient of this rank's columns, backward run twice."""
    case = case | {"rows": rank} if case.get("rows") == "rank" else case
    logits, target, weight = inputs(case, dtype)
    if case.get("weighted") == "requires grad":
        weight.requires_grad_()
    options, sizes = settings(case), SIZES[world]
    if case.get("sizes"):
        options["shard_sizes"] = sizes if case["sizes"] is True else case["sizes"]
    if case.get("placed"):
        shard = placed(logits, case["placed"], world).requires_grad_()
    else:
        shard = logits.split(sizes, 1)[rank].contiguous().requires_grad_()
    loss = sharded_cyclical_focal_loss(shard.neg().neg() if case.get("negated") else shard, target, weight, **options)
    total = loss.sum() * FACTOR
    total.backward(retain_graph=True, create_graph=case.get("create_graph", False))
    once, shard.grad = shard.grad, None
    total.backward()
    assert torch.equal(local(once).nan_to_num(), local(shard.grad).nan_to_num())
    assert type(shard.grad) is type(shard.detach())
    assert not case.get("placed") or shard.grad.placements == shard.placements
    return loss.detach(), local(shard.grad)


def placed(logits, mesh_dims, world):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,) if mesh_dims == 1 else (2, world // 2))
    return distribute_tensor(logits, mesh, [Shard(1)] if mesh_dims == 1 else [Replicate(), Shard(1)])


def local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def process(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    results = {
        (name, dtype): run(case, dtype, rank, world)
        for name, case in CASES.items()
        for dtype in (torch.float32, torch.float64)
    }
    for name, case in REFUSED.items():
        try:
            results[name] = run(case, torch.float32, rank, world)
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


# --- tests ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[2, 4], ids="{} processes".format)
def ranks(request):
    """Every process's results."""
    with tempfile.TemporaryDirectory() as folder:
        calls = [[sys.executable, __file__, str(rank), str(request.param), folder] for rank in range(request.param)]
        started = [subprocess.Popen(call, stderr=subprocess.PIPE, text=True) for call in calls]
        for process in started:
            errors = process.communicate(timeout=120)[1]
            assert process.returncode == 0, errors
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_joined_loss(ranks, name, dtype):
    case = CASES[name]
    logits, target, weight = inputs(case, dtype)
    logits = logits.double().requires_grad_()
    expected = cyclical_focal_loss(logits, target, None if weight is None else weight.double(), **settings(case))
    (grad,) = torch.autograd.grad(expected.sum() * FACTOR, logits)
    results = [rank[name, dtype] for rank in ranks]
    loss = results[0][0]
    assert loss.dtype == (torch.float32 if "dtype" in case else dtype)
    tolerance = 1e-12 if loss.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=tolerance, atol=tolerance, equal_nan=True)
    assert all(torch.equal(loss.nan_to_num(), other.nan_to_num()) for other, _ in results)
    shards = results[: len(results) // case["placed"]] if case.get("placed") else results
    joined = torch.cat([shard for _, shard in shards], 1)
    tolerance = 4e-3 if "dtype" in case else tolerance
    torch.testing.assert_close(joined.double(), grad, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("message", REFUSED)
def test_refuses(ranks, message):
    for rank in ranks:
        assert isinstance(rank[message], str)
        assert rank[message].startswith(message)


def test_needs_a_process_group():
    with pytest.raises(RuntimeError, match="init_process_group"):
        sharded_cyclical_focal_loss(torch.zeros(1, 2), torch.tensor([0]), eta=0.5)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_batched_gradients(reduction):
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    value = sharded_cyclical_focal_loss(logits, torch.tensor([0, 3, 1]), eta=0.4, reduction=reduction)
    cotangents = torch.randn(5, *value.shape, dtype=torch.float64)
    (batched,) = torch.autograd.grad(value, logits, cotangents, is_grads_batched=True, retain_graph=True)
    for cotangent, got in zip(cotangents, batched, strict=True):
        torch.testing.assert_close(got, torch.autograd.grad(value, logits, cotangent, retain_graph=True)[0])


@pytest.mark.usefixtures("process_group")
def test_transforms_and_tracing_are_refused():
    logits = torch.randn(3, 4)

    def loss(z):
        return sharded_cyclical_focal_loss(z, torch.tensor([0, 3, 1]), eta=0.4)

    for transform in (torch.func.grad(loss), torch.func.jacfwd(loss), lambda z: torch.jit.trace(loss, (z,))):
        with pytest.raises(RuntimeError, match="use cyclical_focal_loss on the joined logits"):
            transform(logits)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode"):
        loss(torch.autograd.forward_ad.make_dual(logits, logits))


if __name__ == "__main__":
    process(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
