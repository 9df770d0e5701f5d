"""Promise: torch.compile compiles a loss once as one graph that follows the clock; torch.func transforms work."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint

from cyclofocal import BinaryCyclicalFocalLoss, CyclicalFocalLoss
from cyclofocal.functional import binary_cyclical_focal_loss, cyclical_focal_loss
from cyclofocal.schedules import cyclical_eta, epoch_progress

X, T = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
ONE_HOT = F.one_hot(T, 4).float()


@pytest.mark.parametrize("how", ["set_progress", "total_steps"])
@pytest.mark.parametrize("loss", [CyclicalFocalLoss, BinaryCyclicalFocalLoss])
def test_one_graph_over_a_whole_schedule_and_right_at_every_step(loss, how):
    steps = 41
    criterion = loss(total_steps=steps if how == "total_steps" else None, label_smoothing=0.1)
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(criterion, fullgraph=True, backend=backend)
    function = cyclical_focal_loss if loss is CyclicalFocalLoss else binary_cyclical_focal_loss
    for step in range(steps):
        if how == "set_progress":
            criterion.set_progress(epoch_progress(step, steps))
        eta = cyclical_eta(epoch_progress(step, steps))
        x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
        value, expected = compiled(x, ONE_HOT), function(y, ONE_HOT, eta=eta, label_smoothing=0.1)
        torch.testing.assert_close(value, expected)
        value.backward()
        expected.backward()
        torch.testing.assert_close(x.grad, y.grad)
    assert len(graphs) == 1


@pytest.mark.parametrize("loss", [CyclicalFocalLoss, BinaryCyclicalFocalLoss])
def test_eager_and_compiled_steps_share_one_clock(loss):
    torch._dynamo.reset()
    criterion, expected = (loss(total_steps=8) for _ in range(2))
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    for step in (criterion, criterion, compiled, compiled, criterion, compiled, compiled, criterion):
        x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
        ours, theirs = step(x, ONE_HOT), expected(y, ONE_HOT)
        torch.testing.assert_close(ours, theirs)
        ours.backward()
        theirs.backward()
        torch.testing.assert_close(x.grad, y.grad)
    assert criterion.state_dict() == expected.state_dict()


@pytest.mark.parametrize("dynamic", [None, False, True])
@pytest.mark.parametrize("loss", [CyclicalFocalLoss, BinaryCyclicalFocalLoss])
def test_clocks_of_two_factors_in_one_compiled_function(loss, dynamic):
    torch._dynamo.reset()
    criteria = [loss(total_steps=7, cyclical_factor=factor) for factor in (1.0, 2.5, 4.0)]
    eager = [loss(total_steps=7, cyclical_factor=factor) for factor in (1.0, 2.5, 4.0)]

    @torch.compile(fullgraph=True, dynamic=dynamic, backend="aot_eager")
    def total(x, target):
        return sum(criterion(x, target) for criterion in criteria)

    for rows in (6, 5, 4, 6, 3, 6, 6):
        torch.testing.assert_close(total(X[:rows], ONE_HOT[:rows]), sum(c(X[:rows], ONE_HOT[:rows]) for c in eager))
    assert [criterion.eta for criterion in criteria] == [criterion.eta for criterion in eager]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("loss", [CyclicalFocalLoss, BinaryCyclicalFocalLoss])
def test_a_compiled_loss_inside_a_checkpoint_counts_once(loss, reentrant):
    torch._dynamo.reset()
    criterion, eager = (loss(total_steps=5, reduction="none") for _ in range(2))
    compiled = torch.compile(lambda z: criterion(z.sin(), ONE_HOT).square().mean(), backend="aot_eager")
    for step in range(5):
        assert criterion.progress.item() == pytest.approx(step / 4)
        x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
        checkpoint(compiled, x, use_reentrant=reentrant).backward()
        eager(y.sin(), ONE_HOT).square().mean().backward()
        torch.testing.assert_close(x.grad, y.grad)
    assert criterion.progress == 1


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("total_steps", [None, 11])
def test_a_compiled_recomputation_has_the_eta_of_its_forward(reentrant, total_steps):
    """Whatever moves the clock in between, and wherever between two steps it was."""
    torch._dynamo.reset()
    criterion, eager = (CyclicalFocalLoss(total_steps=total_steps, reduction="none") for _ in range(2))
    compiled = torch.compile(lambda z: criterion(z.sin(), T).square().mean(), backend="aot_eager")
    for progress in (0.33, 0.7):
        x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
        for clocked in (criterion, eager):
            clocked.set_progress(progress)
        ours, theirs = checkpoint(compiled, x, use_reentrant=reentrant), eager(y.sin(), T).square().mean()
        criterion.set_progress(1.0)
        ours.backward()
        theirs.backward()
        torch.testing.assert_close(x.grad, y.grad)


def test_inductor_compiles_forward_and_backward():
    torch._dynamo.reset()
    criterion = CyclicalFocalLoss(total_steps=5, weight=torch.rand(4), label_smoothing=0.1)
    eager = CyclicalFocalLoss(total_steps=5, weight=criterion.weight, label_smoothing=0.1)
    compiled = torch.compile(criterion, fullgraph=True)
    for _ in range(5):
        x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
        compiled(x, T).backward()
        eager(y, T).backward()
        torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(criterion.eta, eager.eta)


@pytest.mark.parametrize("function", [cyclical_focal_loss, binary_cyclical_focal_loss])
def test_per_sample_gradients(function):
    target = T if function is cyclical_focal_loss else ONE_HOT

    def of_one(x, t):
        return function(x, t, eta=0.4, label_smoothing=0.1)

    per_sample = vmap(grad(of_one))(X, target)
    for i in range(len(X)):
        x = X[i].clone().requires_grad_()
        of_one(x, target[i]).backward()
        torch.testing.assert_close(per_sample[i], x.grad)


def test_vmap_over_eta_and_modules_inside_transforms():
    etas = torch.linspace(0, 1, 5)
    values = vmap(lambda eta: cyclical_focal_loss(X, T, eta=eta))(etas)
    torch.testing.assert_close(values, torch.stack([cyclical_focal_loss(X, T, eta=eta) for eta in etas]))
    criterion = CyclicalFocalLoss()
    criterion.set_progress(0.3)
    x = X.clone().requires_grad_()
    criterion(x, T).backward()
    torch.testing.assert_close(grad(lambda z: criterion(z, T))(X), x.grad)
