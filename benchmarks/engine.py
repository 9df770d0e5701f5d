"""What the training engine costs: against a bare loop with the same model and data, and the loss's share of a step.

Run: ``python benchmarks/engine.py``, two minutes on one core. Epochs of the two loops alternate and processor time is
counted; the bare loop against itself shows how much of a ratio is noise.
"""

import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

from cyclofocal import CyclicalFocalLoss
from cyclofocal.lab.data.config import FolderData
from cyclofocal.lab.data.dataset import Samples, in_memory
from cyclofocal.lab.recipes.loss import CYCLICAL
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training.batches import source
from cyclofocal.lab.training.epoch import Course, run_epoch
from cyclofocal.lab.training.learner import build_learner, initial_model
from cyclofocal.lab.training.progress import Display
from cyclofocal.lab.training.train import Setup, start_accelerator

ROUNDS = 31
IMAGES = 1280

RECIPE = Recipe(
    name="bench",
    title="a small CNN on 28-pixel images",
    data=FolderData("none"),
    epochs=ROUNDS,
    learning_rate=0.01,
    model="small-convnet",
    width=16,
    image_size=28,
    channels=1,
)


def fake_images() -> Samples:
    """Noise with labels."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (IMAGES, 1, 28, 28), dtype=torch.uint8, generator=draw)
    return in_memory(pixels, torch.randint(10, (IMAGES,), generator=draw).numpy(), "noise")


def bare_epoch(
    model: nn.Module, criterion: CyclicalFocalLoss, optimizer: torch.optim.Optimizer, data: Samples
) -> float:
    """The loop that one writes by hand; seconds of processor time."""
    assert data.inputs is not None
    started, labels = time.process_time(), torch.from_numpy(data.labels)
    loss_sum, right = 0.0, 0
    model.train()
    for indices in torch.randperm(len(data)).split(RECIPE.batch_size):
        images, target = data.inputs[indices] / 255, labels[indices]
        logits = model(images)
        loss = criterion(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(target)
        right += int((logits.argmax(1) == target).sum())
    return time.process_time() - started


def overhead() -> tuple[list[float], list[float]]:
    """Per round: seconds with the engine over the mean of two bare ones around it, and those two over each other."""
    data, accelerator = fake_images(), start_accelerator(RECIPE, Setup(cpu=True))
    model, criterion = initial_model(RECIPE, 10, 0), CyclicalFocalLoss(label_smoothing=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    criterion.set_progress(0.1)
    learner = build_learner(RECIPE, CYCLICAL, 10, 0, accelerator)
    course = Course(RECIPE, CYCLICAL, 0, data, source(data, RECIPE, accelerator.device, training=True), None)
    ratios, control = [], []
    with Display("bench", 1, 0, shown=False) as display:
        for epoch in range(ROUNDS):
            before = bare_epoch(model, criterion, optimizer, data)
            started = time.process_time()
            run_epoch(learner, course, epoch, display)
            engine = time.process_time() - started
            after = bare_epoch(model, criterion, optimizer, data)
            ratios.append(2 * engine / (before + after))
            control.append(after / before)
    return ratios, control


def loss_share(batch_size: int = 8) -> tuple[float, float, float]:
    """Milliseconds of a ResNet-18 step on ImageNet-sized images, and of the loss in it: ours, and cross-entropy."""
    import timm

    model = timm.create_model("resnet18", num_classes=1000)
    images, target = torch.randn(batch_size, 3, 224, 224), torch.arange(batch_size)
    ours = CyclicalFocalLoss(label_smoothing=0.1)
    ours.set_progress(0.1)
    logits = torch.randn(batch_size, 1000, requires_grad=True)

    def milliseconds(work, times):  # type: ignore[no-untyped-def]
        taken = []
        for _ in range(times):
            started = time.process_time()
            work()
            taken.append(time.process_time() - started)
        return 1000 * statistics.median(taken)

    step = milliseconds(lambda: ours(model(images), target).backward(), 5)
    return (
        step,
        milliseconds(lambda: ours(logits, target).backward(), 200),
        milliseconds(lambda: F.cross_entropy(logits, target).backward(), 200),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread")
    for name, ratios in zip(("engine over bare", "bare over bare"), overhead(), strict=True):
        low, median, high = statistics.quantiles(ratios, n=4)
        print(f"small CNN, {ROUNDS} rounds, {name}: median {median:.3f}, quartiles {low:.3f} to {high:.3f}")
    step, ours, plain = loss_share()
    print(
        f"ResNet-18 step, 8 images: {step:.0f} ms; loss {ours:.3f} ms, {100 * ours / step:.3f} % of it"
        f" (cross-entropy {plain:.3f} ms)"
    )
