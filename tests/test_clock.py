"""Promise: modules have the right progress, set or counted, through state_dict and .to()."""

import copy
import io
import pickle
import random
import warnings

import pytest
import torch
import torch.distributed
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from cyclofocal import BinaryCyclicalFocalLoss, CyclicalFocalLoss, FocalLoss
from cyclofocal.functional import binary_cyclical_focal_loss, cyclical_focal_loss
from cyclofocal.schedules import cosine, cyclical_eta, epoch_progress

LOSSES = [CyclicalFocalLoss, BinaryCyclicalFocalLoss]
X, T = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
ONE_HOT = F.one_hot(T, 4).float()


def train(criterion, steps):
    """Progress seen by each of ``steps`` training forwards."""
    seen = []
    for _ in range(steps):
        seen.append(criterion.progress.item())
        criterion(X.clone().requires_grad_(), ONE_HOT).backward()
    return seen


@pytest.mark.parametrize("loss", LOSSES)
def test_total_steps_walks_from_zero_to_one(loss):
    criterion = loss(total_steps=5)
    assert train(criterion, 5) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_each_step_uses_the_eta_of_its_own_progress():
    criterion = CyclicalFocalLoss(total_steps=9, cyclical_factor=2.0, label_smoothing=0.1)
    for step in range(9):
        eta = cyclical_eta(epoch_progress(step, 9), 2.0)
        expected = cyclical_focal_loss(X, T, eta=eta, label_smoothing=0.1)
        torch.testing.assert_close(criterion(X, T), expected)


def test_accumulation_advances_every_kth_forward():
    criterion = CyclicalFocalLoss(total_steps=3, accumulation=2)
    assert train(criterion, 6) == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]


def test_past_the_end_it_stays_and_says_so_once():
    criterion = CyclicalFocalLoss(total_steps=2, accumulation=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(criterion, 4)
    with pytest.warns(UserWarning, match="more training steps than total_steps=2"):
        train(criterion, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(criterion, 3) == [1.0] * 3


def test_one_step_is_legal():
    assert train(CyclicalFocalLoss(total_steps=1), 1) == [0.0]


@pytest.mark.parametrize("loss", LOSSES)
def test_eval_is_plain_cross_entropy_and_does_not_advance(loss):
    criterion = loss(total_steps=5, label_smoothing=0.1).eval()
    if loss is CyclicalFocalLoss:
        expected = F.cross_entropy(X, T, label_smoothing=0.1)
        torch.testing.assert_close(criterion(X, T), expected)
    else:
        expected = F.binary_cross_entropy_with_logits(X, ONE_HOT * 0.9 + 0.05)
        torch.testing.assert_close(criterion(X, ONE_HOT), expected)
    assert criterion.progress == 0
    training_form = loss(cyclical_in_eval=True).eval()
    assert not torch.isclose(training_form(X, ONE_HOT), loss().eval()(X, ONE_HOT))


def test_without_gradients_nothing_advances():
    criterion = CyclicalFocalLoss(total_steps=5)
    with torch.no_grad():
        criterion(X, T)
    assert criterion.progress == 0


def test_set_progress():
    criterion = CyclicalFocalLoss(cyclical_factor=4.0)
    for epoch in range(5):
        criterion.set_progress(epoch_progress(epoch, 5))
        assert criterion.eta.item() == pytest.approx(cyclical_eta(epoch / 4))
        torch.testing.assert_close(criterion(X, T), cyclical_focal_loss(X, T, eta=criterion.eta))
    with pytest.raises(ValueError, match=r"progress is 1\.2"):
        criterion.set_progress(1.2)
    assert criterion.progress == 1  # unmoved by the refused call


def test_set_progress_before_backward_does_not_change_gradients():
    criterion = CyclicalFocalLoss()
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    loss = criterion(x, T)
    criterion.set_progress(0.25)
    loss.backward()
    cyclical_focal_loss(y, T, eta=1.0).backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_set_progress_moves_the_counter_too():
    criterion = CyclicalFocalLoss(total_steps=5, accumulation=2)
    criterion.set_progress(0.5)
    assert train(criterion, 4) == [0.5, 0.5, 0.75, 0.75]


def test_another_schedule():
    criterion = CyclicalFocalLoss(total_steps=9, schedule=lambda p: cosine(cyclical_eta(p, 2.0)))
    train(criterion, 1)
    assert criterion.eta.item() == pytest.approx(cosine(cyclical_eta(1 / 8, 2.0)), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_clock_is_in_the_state_dict(loss):
    criterion = loss(total_steps=7)
    train(criterion, 3)
    file = io.BytesIO()
    torch.save(criterion.state_dict(), file)
    file.seek(0)
    resumed = loss(total_steps=7)
    resumed.load_state_dict(torch.load(file))
    assert train(resumed, 4) == train(criterion, 4)
    with pytest.warns(UserWarning, match="total_steps"):  # also the count for this warning was resumed
        train(resumed, 1)
    assert train(copy.deepcopy(resumed), 1) == [1.0]


@pytest.mark.parametrize("loss", LOSSES)
def test_another_loss_has_no_clock_to_load(loss):
    other = nn.ModuleDict({"model": nn.Linear(4, 4), "criterion": nn.CrossEntropyLoss()})
    ours = nn.ModuleDict({"model": nn.Linear(4, 4), "criterion": loss(total_steps=7)})
    train(ours["criterion"], 3)
    with pytest.warns(UserWarning, match="holds no clock"):
        ours.load_state_dict(other.state_dict())
    torch.testing.assert_close(ours["model"].weight, other["model"].weight)
    assert train(ours["criterion"], 7) == train(loss(total_steps=7), 7)
    partly = {name: value for name, value in ours.state_dict().items() if name != "criterion.eta"}
    with pytest.raises(RuntimeError, match=r"Missing key.*criterion\.eta"):
        ours.load_state_dict(partly)


def test_a_prior_stays_when_another_loss_is_loaded():
    criterion = FocalLoss.from_counts([8, 1, 1, 1], tau=1.0)
    prior = criterion.logit_offset.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it has no progress to set
        criterion.load_state_dict(nn.CrossEntropyLoss().state_dict())
    assert torch.equal(criterion.logit_offset, prior)


def test_half_moves_the_module_and_does_not_round_the_clock():
    model = nn.ModuleDict({"criterion": CyclicalFocalLoss(weight=torch.ones(4), total_steps=10_001)})
    criterion = model["criterion"]
    train(criterion, 3)
    model.to(torch.bfloat16)
    assert criterion.weight.dtype == torch.bfloat16
    assert criterion.progress.dtype == criterion.eta.dtype == torch.float32
    assert criterion.progress.item() == pytest.approx(3e-4, rel=1e-6)
    assert all(buffer.device.type == "meta" for buffer in model.to("meta").buffers())


def test_progress_that_is_never_set_warns():
    criterion = CyclicalFocalLoss()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(criterion, 99)
    with pytest.warns(UserWarning, match="progress was never set"):
        train(criterion, 1)


def test_a_second_training_that_sets_no_progress_warns():
    criterion = CyclicalFocalLoss()
    criterion.set_progress(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(criterion, 250)
    criterion.end_training()
    assert criterion.progress == 1
    with pytest.warns(UserWarning, match="progress was never set in 100 training steps"):
        train(criterion, 100)


def test_a_printed_loss_shows_what_differs_from_its_defaults():
    usual = "gamma_pos=2.0, gamma_neg=2.0, gamma_hc=3.0"
    assert repr(CyclicalFocalLoss()) == f"CyclicalFocalLoss({usual}, cyclical_factor=4.0)"
    made = CyclicalFocalLoss.from_counts([9, 1], tau=1.0, class_weight="sqrt", weight_start=0.8, reduction="sum")
    assert repr(made) == (
        f"CyclicalFocalLoss(weight=Tensor(2,), logit_offset=Tensor(2,), {usual},"
        " reduction='sum', weight_start=0.8, cyclical_factor=4.0)"
    )
    binary = BinaryCyclicalFocalLoss(
        alpha=0.25, pos_weight=torch.ones(3), label_smoothing=0.1, total_steps=9, accumulation=2, cyclical_in_eval=True
    )
    assert repr(binary) == (
        f"BinaryCyclicalFocalLoss(pos_weight=Tensor(3,), {usual}, alpha=0.25, label_smoothing=0.1,"
        " cyclical_factor=4.0, total_steps=9, accumulation=2, cyclical_in_eval=True)"
    )


def test_warnings_name_the_line_that_called_the_loss():
    counting, never_set = CyclicalFocalLoss(total_steps=1), CyclicalFocalLoss()
    train(counting, 1)
    train(never_set, 99)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        counting(X, T)
        never_set(X, T)
        never_set.load_state_dict({})
    assert [warning.filename for warning in found] == [__file__] * 3


def test_end_training_leaves_a_loss_that_counts_alone():
    criterion = CyclicalFocalLoss(total_steps=5)
    train(criterion, 2)
    criterion.end_training()
    assert train(criterion, 3) == [0.5, 0.75, 1.0]
    with pytest.warns(UserWarning, match="more training steps than total_steps=5"):
        train(criterion, 1)


def test_drop_in_for_cross_entropy_in_a_loop_without_epochs():
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, T), batch_size=2)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    criterion = CyclicalFocalLoss(total_steps=4 * len(data))
    etas = []
    for _ in range(4):
        for x, t in data:
            optimizer.zero_grad()
            etas.append(criterion.eta.item())
            criterion(model(x), t).backward()
            optimizer.step()
    assert etas == pytest.approx([cyclical_eta(epoch_progress(s, 12)) for s in range(12)], rel=1e-5)


class Head(nn.Module):
    """A last layer and its loss, checkpointed together to save the logits, next to another checkpoint."""

    def __init__(self, loss, reentrant, **options):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.criterion, self.reentrant = nn.Linear(4, 4), loss(**options), reentrant

    def run(self, x, target):
        logits = self.layer(x)
        return self.criterion(logits, target).square().mean() + logits.logsumexp(1).square().mean()

    def forward(self, x, target):
        if self.reentrant is None:
            return self.run(x, target)
        return checkpoint(self.run, x, target, use_reentrant=self.reentrant)

    def step(self, *calls):
        """Gradient of the layer after the backward pass of the sum of some calls."""
        self.zero_grad()
        x = X.clone().requires_grad_()
        sum(self(scale * x, ONE_HOT) for scale in calls or (1.0,)).backward()
        return self.layer.weight.grad.clone()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_checkpointed_loss_is_recomputed_at_its_own_eta(loss, reentrant, reduction):
    """Recomputation is not counted: eleven forwards reach the end of the schedule, with the same gradients."""
    plain, head = (Head(loss, r, total_steps=11, reduction=reduction) for r in (None, reentrant))
    for step in range(11):
        assert head.criterion.progress.item() == pytest.approx(step / 10)
        torch.testing.assert_close(head.step(), plain.step())
    assert head.criterion.progress == 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_of_one_step_share_its_eta(reentrant):
    plain, head = (
        Head(CyclicalFocalLoss, r, total_steps=5, accumulation=2, reduction="none") for r in (None, reentrant)
    )
    for step in range(5):
        assert head.criterion.progress.item() == pytest.approx(step / 4)
        torch.testing.assert_close(head.step(1.0, 0.5), plain.step(1.0, 0.5))


def test_nested_reentrant_checkpoints_count_once():
    head = Head(CyclicalFocalLoss, True, total_steps=5)
    for _ in range(3):
        checkpoint(head, X.clone().requires_grad_(), ONE_HOT, use_reentrant=True).backward()
    assert head.criterion.progress.item() == pytest.approx(3 / 4)


def test_a_loss_looked_at_without_gradients_is_no_step():
    head = Head(CyclicalFocalLoss, False, total_steps=5)
    for _ in range(3):
        with torch.no_grad():
            head.run(X, ONE_HOT)
        head.step()
    assert head.criterion.progress.item() == pytest.approx(3 / 4)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_second_backward_of_a_checkpoint_is_no_step(loss):
    head = Head(loss, False, total_steps=5, reduction="none")
    value = head(X.clone().requires_grad_(), ONE_HOT)
    first, second = (torch.autograd.grad(value, head.layer.weight, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second)
    assert head.criterion.progress.item() == pytest.approx(1 / 4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_forwards_of_one_backward_share_its_eta(reentrant):
    """Also without accumulation: a step is what one backward pass is made of."""
    plain, head = (Head(CyclicalFocalLoss, r, total_steps=11, reduction="none") for r in (None, reentrant))
    for step in range(5):
        assert head.criterion.progress.item() == pytest.approx(2 * step / 10)
        torch.testing.assert_close(head.step(1.0, 0.5), plain.step(1.0, 0.5))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_loss_looked_at_before_the_backward_pass_is_no_step(reentrant):
    plain, head = (Head(CyclicalFocalLoss, r, total_steps=11, reduction="none") for r in (None, reentrant))
    for step in range(5):
        assert head.criterion.progress.item() == pytest.approx(step / 10)
        gradients = []
        for model in (plain, head):
            model.zero_grad()
            value = model(X.clone().requires_grad_(), ONE_HOT)
            with torch.no_grad():
                model.run(X, ONE_HOT)
            model.run(X, ONE_HOT)  # with a graph that no backward pass reaches
            value.backward()
            gradients.append(model.layer.weight.grad)
        torch.testing.assert_close(*gradients)


def test_backward_passes_may_come_after_all_forwards():
    """As in pipelines: two halves of a step, each with a backward pass of its own."""
    plain, head = (Head(CyclicalFocalLoss, r, total_steps=5, accumulation=2, reduction="none") for r in (None, False))
    for step in range(5):
        assert head.criterion.progress.item() == pytest.approx(step / 4)
        for model in (plain, head):
            model.zero_grad()
            halves = [model(scale * X.clone().requires_grad_(), ONE_HOT) for scale in (1.0, 0.5)]
            for half in halves:
                half.backward()
        torch.testing.assert_close(head.layer.weight.grad, plain.layer.weight.grad)


def test_the_training_form_in_eval_mode_is_recomputed_alike():
    plain, head = (Head(CyclicalFocalLoss, r, cyclical_in_eval=True, reduction="none") for r in (None, False))
    for model in (plain, head):
        model.step()
        model.eval().criterion.set_progress(0.25)
    torch.testing.assert_close(head.step(), plain.step())


def test_a_module_of_inference_mode_can_be_trained():
    with torch.inference_mode():
        criterion = CyclicalFocalLoss(total_steps=5)
    assert train(criterion, 5) == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("loss", LOSSES)
def test_deferred_initialisation_starts_the_clock(loss):
    """Build on the meta device and allocate later, as for sharded and very large models."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), loss(total_steps=5)).half()
    assert all(buffer.is_meta for buffer in model.buffers())
    criterion = model.to_empty(device="cpu")[1]
    assert (criterion.step, criterion.progress, criterion.eta) == (0, 0, 1)
    assert (criterion.step.dtype, criterion.eta.dtype) == (torch.int64, torch.float32)
    assert train(criterion, 5) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_moving_without_values_keeps_a_running_clock():
    criterion = CyclicalFocalLoss(total_steps=5)
    train(criterion, 2)
    assert criterion.to_empty(device="cpu").progress == 0.5
    criterion.reset_parameters()
    assert (criterion.step, criterion.progress, criterion.eta) == (0, 0, 1)


def test_a_state_can_be_loaded_into_deferred_buffers():
    source = CyclicalFocalLoss(total_steps=5)
    train(source, 2)
    with torch.device("meta"):
        criterion = CyclicalFocalLoss(total_steps=5)
    criterion.load_state_dict(source.state_dict(), assign=True)
    assert train(criterion, 3) == [0.5, 0.75, 1.0]


@pytest.mark.usefixtures("process_group")
def test_a_fully_sharded_model_materialises_its_clock():
    from torch.distributed.fsdp import fully_shard

    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4))
        model.criterion = CyclicalFocalLoss(total_steps=5)
    fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    model.criterion(model[0].weight.to_local() * 1.0, T[:4]).backward()
    assert model.criterion.progress == 0.25


def test_copies_have_separate_clocks():
    criterion = CyclicalFocalLoss(total_steps=5)
    train(criterion, 2)
    copies = [copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion)), criterion._replicate_for_data_parallel()]
    for other in copies[:2]:
        assert train(other, 3) == [0.5, 0.75, 1.0]
        assert criterion.progress == 0.5
    assert copies[2].eta is criterion.eta  # torch gives separate buffers to replicas on other devices


def operations(criterion, logits):
    """Names of torch's operations in one forward and backward pass."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as run:
        torch.autograd.grad(criterion(logits, ONE_HOT), logits)
    return [event.name for event in run.events() if event.name.startswith("aten::")]


@pytest.mark.parametrize("loss", LOSSES)
def test_the_clock_takes_no_operation_of_a_device(loss):
    function = cyclical_focal_loss if loss is CyclicalFocalLoss else binary_cyclical_focal_loss
    logits = X.clone().requires_grad_()
    expected = operations(lambda *call: function(*call, eta=0.5), logits)
    for options in ({"total_steps": 5}, {}, {"cyclical_in_eval": True}):
        criterion = loss(**options).train("cyclical_in_eval" not in options)
        train(criterion, 1)
        assert operations(criterion, logits) == expected


@pytest.mark.parametrize("look", ["state_dict", "named_buffers", "deepcopy", "pickle", "to", "attribute"])
def test_buffers_are_up_to_date_for_all_who_look(look):
    model = nn.ModuleDict({"criterion": CyclicalFocalLoss(total_steps=5)})
    for _ in range(3):
        model["criterion"](X.clone().requires_grad_(), ONE_HOT).backward()
    read = {
        "state_dict": lambda: model.state_dict()["criterion.progress"],
        "named_buffers": lambda: dict(model["criterion"].named_buffers())["progress"],
        "deepcopy": lambda: copy.deepcopy(model)["criterion"]._buffers["progress"],
        "pickle": lambda: pickle.loads(pickle.dumps(model))["criterion"]._buffers["progress"],
        "to": lambda: model.to(torch.float64)["criterion"]._buffers["progress"],
        "attribute": lambda: model["criterion"].progress,
    }
    assert read[look]() == 0.75


def test_a_loaded_state_replaces_steps_not_yet_written():
    source, criterion = (CyclicalFocalLoss(total_steps=5) for _ in range(2))
    train(source, 1)
    criterion(X.clone().requires_grad_(), ONE_HOT).backward()
    criterion(X.clone().requires_grad_(), ONE_HOT).backward()
    criterion.load_state_dict(source.state_dict())
    assert train(criterion, 4) == [0.25, 0.5, 0.75, 1.0]


def test_buffers_written_by_others_are_used():
    """Data-parallel wrappers and compiled graphs write into the buffers directly."""
    source, criterion = (CyclicalFocalLoss(total_steps=5) for _ in range(2))
    train(source, 2)
    for name, buffer in criterion.named_buffers():
        buffer.copy_(source.get_buffer(name))
    assert train(criterion, 3) == [0.5, 0.75, 1.0]


EVENTS = {
    "step": lambda c: c(X.clone().requires_grad_(), ONE_HOT).backward(),
    "forward only": lambda c: c(X.clone().requires_grad_(), ONE_HOT),
    "two forwards": lambda c: (
        c(X.clone().requires_grad_(), ONE_HOT) + c(-X.clone().requires_grad_(), ONE_HOT)
    ).backward(),
    "constant": lambda c: c(X, ONE_HOT),
    "no grad": torch.no_grad()(lambda c: c(X, ONE_HOT)),
    "checkpoint": lambda c: checkpoint(c, X.clone().requires_grad_(), ONE_HOT, use_reentrant=False).backward(),
    "reentrant": lambda c: checkpoint(c, X.clone().requires_grad_(), ONE_HOT, use_reentrant=True).backward(),
    "eval": lambda c: c.eval()(X.clone().requires_grad_(), ONE_HOT).backward(),
    "train": lambda c: c.train(),
    "set": lambda c: c.set_progress(0.3),
    "load": lambda c: c.load_state_dict(c.state_dict()),
    "write": lambda c: c.eta.fill_(0.2),
    "half": lambda c: c.half(),
}


@pytest.mark.parametrize("total_steps", [None, 40])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_short_way_through_a_step_counts_as_the_long_one(loss, total_steps):
    """Class weights of 1 change nothing but the way: the call without weights has its own."""
    chosen = random.Random(0)
    short, long = loss(total_steps=total_steps), loss(torch.ones(4), total_steps=total_steps)
    for _ in range(150):
        name = chosen.choice(list(EVENTS))
        said = []
        for criterion in (short, long):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                EVENTS[name](criterion)
            said.append([str(warning.message) for warning in caught])
        assert said[0] == said[1], name
        assert short._host.forwards == long._host.forwards, name
        for buffer in ("step", "progress", "eta"):
            assert getattr(short, buffer) == getattr(long, buffer), name
        torch.testing.assert_close(
            short(X.clone().requires_grad_(), ONE_HOT), long(X.clone().requires_grad_(), ONE_HOT)
        )
