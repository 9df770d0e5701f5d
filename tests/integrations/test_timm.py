"""Promise: in timm's loop eta follows the updates, through accumulation and --resume, and the criterion is timm's."""

import inspect
import math

import pytest
import torch
from timm import create_model
from timm.data.mixup import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy, create_classification_loss
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask, MultiLabelClassificationTask, resume_task_checkpoint
from timm.utils import CheckpointSaver
from torch import nn

from cyclofocal import CyclicalFocalLoss
from cyclofocal.integrations.timm import LossScheduler, create_loss
from cyclofocal.schedules import cyclical_eta

EPOCHS, BATCHES, ACCUMULATION = 3, 5, 2
UPDATES = math.ceil(BATCHES / ACCUMULATION)  # per epoch; the last one of an epoch has a single batch
PLAIN = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0}
EXPECTED = [update / (EPOCHS * UPDATES - 1) for update in range(EPOCHS * UPDATES)]


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCHES, 4, 3, 32, 32, generator=generator)
    return list(zip(images, torch.randint(3, (BATCHES, 4), generator=generator), strict=True))


class Training:
    """Train like timm's train.py, with its parts in its order."""

    def __init__(self, folder, criterion, model=None, on_updates=False):
        torch.manual_seed(0)
        self.model = model or create_model("test_resnet", num_classes=3)
        self.task = ClassificationTask(self.model, criterion=criterion, verbose=False)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        scheduler, self.epochs = create_scheduler_v2(
            self.optimizer, num_epochs=EPOCHS, warmup_epochs=0, updates_per_epoch=UPDATES, step_on_epochs=not on_updates
        )
        self.scheduler = LossScheduler(scheduler, criterion, self.epochs, UPDATES)
        self.on_updates = on_updates
        self.saver = CheckpointSaver(self.model, self.optimizer, checkpoint_dir=str(folder), task=self.task)
        self.seen = []

    def run(self, batches, resume="", epochs=None, mixup=None):
        start = resume_task_checkpoint(self.task, resume, self.optimizer, log_info=False) if resume else 0
        if start:
            self.scheduler.step_update(start * UPDATES) if self.on_updates else self.scheduler.step(start)
        for epoch in range(start, epochs or self.epochs):
            self.train_one_epoch(epoch, batches, mixup)
            self.saver.save_checkpoint(epoch, metric=epoch)
            self.scheduler.step(epoch + 1, epoch)

    def train_one_epoch(self, epoch, batches, mixup):
        self.model.train()
        updates = epoch * UPDATES
        for index, (images, target) in enumerate(batches):
            if mixup:
                images, target = mixup(images, target)
            self.seen.append(self.task.criterion.eta.item())  # type: ignore[attr-defined]
            loss = self.task(images, target)["loss"]
            (loss / (1 if index == BATCHES - 1 else ACCUMULATION)).backward()
            if (index + 1) % ACCUMULATION and index < BATCHES - 1:
                continue
            self.optimizer.step()
            self.optimizer.zero_grad()
            updates += 1
            self.scheduler.step_update(num_updates=updates, metric=loss.item())


@pytest.mark.parametrize("on_updates", [False, True])
def test_eta_follows_the_updates_under_accumulation(batches, tmp_path, on_updates):
    training = Training(tmp_path, create_loss(smoothing=0.1), on_updates=on_updates)
    training.run(batches)
    per_batch = [EXPECTED[epoch * UPDATES + batch // 2] for epoch in range(EPOCHS) for batch in range(BATCHES)]
    assert training.seen == pytest.approx([cyclical_eta(progress) for progress in per_batch], abs=1e-6)
    assert training.task.criterion.progress == 1  # type: ignore[attr-defined]
    assert training.scheduler.t_in_epochs is not on_updates  # the loop's log line asks for it


def test_resume_continues_the_cycle_without_saved_state(batches, tmp_path):
    whole = Training(tmp_path, create_loss())
    whole.run(batches)
    halted = Training(tmp_path, create_loss())
    halted.run(batches, epochs=1)
    checkpoint = tmp_path / "last.pth.tar"
    assert not [name for name in torch.load(checkpoint, weights_only=False)["state_dict"] if "eta" in name]
    resumed = Training(tmp_path, create_loss())
    resumed.run(batches, resume=str(checkpoint))
    assert halted.seen + resumed.seen == pytest.approx(whole.seen, abs=1e-6)
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_mixup_brings_its_own_smoothing(batches, tmp_path):
    criterion = create_loss(smoothing=0.1, soft_targets=True)
    assert criterion.label_smoothing == 0
    training = Training(tmp_path, criterion)
    training.run(batches, mixup=Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=3))
    assert criterion.progress == 1


def test_multi_label_task_trains():
    model = create_model("test_resnet", num_classes=3)
    criterion = create_loss(multi_label=True, pos_weight=[1.0, 2.0, 3.0], smoothing=0.1)
    task = MultiLabelClassificationTask(model, criterion=criterion, verbose=False)
    task(torch.randn(4, 3, 32, 32), torch.randint(2, (4, 3)).float())["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_with_all_gammas_zero_it_is_timms_loss():
    x, y = torch.randn(6, 4), torch.randint(4, (6,))
    soft, labels = torch.rand(6, 4).softmax(1), torch.randint(2, (6, 4)).float()
    sigmoid = {"multi_label": True, "smoothing": 0.1, "class_weight": torch.rand(4), "pos_weight": torch.rand(4)}
    pairs = [
        (create_loss(smoothing=0.1, **PLAIN)(x, y), LabelSmoothingCrossEntropy(0.1)(x, y)),
        (create_loss(smoothing=0.1, soft_targets=True, **PLAIN)(x, soft), SoftTargetCrossEntropy()(x, soft)),
        (create_loss(**sigmoid, **PLAIN)(x, labels), create_classification_loss(**sigmoid)(x, labels)),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("scheme", "tau"), [(None, 1.0), ("balanced", 0.0), ("sqrt", 0.5), ("effective", 1.0)])
def test_counts_give_class_weights_and_the_prior(batches, prior_loss, scheme, tau):
    """Train one step in timm's task: its loss and the gradient of the classifier's bias are the independent ones."""
    (images, target), counts = batches[0], [500, 40, 9]
    torch.manual_seed(0)
    model = create_model("test_resnet", num_classes=3)
    task = ClassificationTask(model, criterion=create_loss(counts=counts, class_weight=scheme, tau=tau, **PLAIN))
    result = task(images, target)
    result["loss"].backward()
    value, gradient = prior_loss(result["output"].detach(), target, counts, tau, scheme)
    assert result["loss"].item() == pytest.approx(value, rel=1e-5)
    assert model.get_classifier().bias.grad.tolist() == pytest.approx(gradient.sum(0), abs=1e-6)


def test_class_weights_start_late(batches, tmp_path):
    """Deferred weights: the loss of an update before 80 % of the training is unweighted."""
    criterion = create_loss(counts=[500, 40, 9], class_weight="balanced", weight_start=0.8, **PLAIN)
    seen: list = []
    logits, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    criterion.register_forward_pre_hook(lambda *_: seen.append(criterion.weight_now() is not None))
    training = Training(tmp_path, criterion)
    training.run(batches)
    late = [EXPECTED[epoch * UPDATES + batch // 2] >= 0.8 for epoch in range(EPOCHS) for batch in range(BATCHES)]
    assert seen == late
    expected = nn.functional.cross_entropy(logits, target, 1 / torch.tensor([500.0, 40, 9]))
    torch.testing.assert_close(criterion(logits, target), expected)


def test_positives_and_samples_of_a_multi_label_task():
    criterion = create_loss(multi_label=True, counts=[10, 50], samples=100, class_weight="balanced", tau=1.0, **PLAIN)
    logits, target = torch.randn(6, 2).double(), torch.randint(2, (6, 2)).double()
    share = torch.tensor([0.1, 0.5]).double()
    p = (logits + (share / (1 - share)).log()).sigmoid()
    expected = -2 * ((1 - share) * target * p.log() + share * (1 - target) * (1 - p).log()).mean()
    torch.testing.assert_close(criterion(logits, target), expected, rtol=1e-6, atol=1e-6)


def test_label_smoothing_follows_from_the_counts():
    loss = create_loss(counts=[1000, 10], smoothing_odds=10.0, **PLAIN)
    assert (
        loss.label_smoothing == CyclicalFocalLoss.from_counts([1000, 10], smoothing_odds=10.0, **PLAIN).label_smoothing
    )


REFUSED: dict = {
    r"smoothing_odds is 9\.0, but counts is None": {"smoothing_odds": 9.0},
    r"smoothing_odds is 9\.0, but soft_targets": {"smoothing_odds": 9.0, "counts": [3, 4], "soft_targets": True},
    "label_smoothing is given, and smoothing_odds": {"smoothing_odds": 9.0, "counts": [3, 4], "smoothing": 0.1},
    "class_weight is 'sqrt', but counts is None": {"class_weight": "sqrt"},
    r"tau is 1\.0, but counts is None": {"tau": 1.0},
    "samples is 9, but counts is None": {"samples": 9},
    "samples is None; with multi_label": {"counts": [3, 4], "multi_label": True},
    "samples is 9; it needs multi_label": {"counts": [3, 4], "samples": 9},
    "class_weight is 'inverse'": {"counts": [3, 4], "class_weight": "inverse"},
    "counts is 0 for class 1": {"counts": [3, 0]},
    "counts is 0 for every class": {"counts": [0, 0]},
    r"counts holds 0\.5 for class 0": {"counts": [0.5, 1]},
    "counts holds -1 for class 1": {"counts": [3, -1]},
    r"tau is -1\.0": {"counts": [3, 4], "tau": -1.0},
    "tau is inf": {"counts": [3, 4], "tau": float("inf")},
    "weight_start is 0.5, but there is no weight": {"weight_start": 0.5},
    "pos_weight is given": {
        "counts": [3, 4],
        "samples": 9,
        "multi_label": True,
        "class_weight": "balanced",
        "pos_weight": 2.0,
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_counts_that_do_not_fit_are_refused(message):
    with pytest.raises(ValueError, match=message):
        create_loss(**REFUSED[message])


def test_counts_of_other_classes_are_refused(batches):
    task = ClassificationTask(create_model("test_resnet", num_classes=3), criterion=create_loss(counts=[1, 2], tau=1.0))
    with pytest.raises(ValueError, match=r"logit_offset has shape \(2,\); for logits of shape \(4, 3\)"):
        task(*batches[0])


def test_it_is_spelt_like_timms_factory():
    """Arguments about the class counts are ours alone."""
    ours = {p.name for p in inspect.signature(create_loss).parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert ours - {"counts", "samples", "tau"} <= set(inspect.signature(create_classification_loss).parameters)


def test_a_wrong_call_is_refused():
    with pytest.raises(ValueError, match="pos_weight"):
        create_loss(pos_weight=2.0)
    with pytest.raises(TypeError, match="CrossEntropyLoss"):
        LossScheduler(None, nn.CrossEntropyLoss(), 3, 3)
    with pytest.raises(ValueError, match="total_steps"):
        LossScheduler(None, create_loss(total_steps=9), 3, 3)
    with pytest.raises(ValueError, match="updates_per_epoch is 0"):
        LossScheduler(None, create_loss(), 3, 0)


def test_a_scheduler_that_is_never_stepped_warns():
    criterion = create_loss()
    LossScheduler(None, criterion, num_epochs=30, updates_per_epoch=10)
    for _ in range(99):
        criterion(torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 1]))
    with pytest.warns(UserWarning, match="progress was never set"):
        criterion(torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 1]))


def test_a_second_training_without_a_scheduler_warns():
    criterion = create_loss()
    scheduler = LossScheduler(None, criterion, num_epochs=2, updates_per_epoch=2)
    for update in range(1, 5):
        criterion(torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 1]))
        scheduler.step_update(update)
    assert criterion.progress == 1
    for _ in range(99):
        criterion(torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 1]))
    with pytest.warns(UserWarning, match="progress was never set"):
        criterion(torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 1]))
