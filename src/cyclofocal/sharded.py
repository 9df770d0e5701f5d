"""Loss of logits whose classes are spread over the ranks of a process group.

Two sums over the classes need all ranks: that of the softmax and, with label smoothing, those of the other classes'
terms. The latter follow from sums that do not depend on the former (``kernels.terms``), so one exchange for the rows'
largest logits and one for all sums are enough.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from cyclofocal.arguments import SoftmaxSettings, add_offset, check_softmax_call, compute_dtype, is_transformed
from cyclofocal.kernels.plain import chunks, row_scale
from cyclofocal.kernels.terms import SoftmaxTerms
from cyclofocal.linear import check_factor_per_class, check_no_gradient


@torch._disable_dynamo  # what torch.compiler.disable does, but without loading the compiler at import
def sharded_cyclical_focal_loss(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None = None,
    *,
    group: Any = None,
    shard_sizes: Sequence[int] | None = None,
    eta: float | Tensor,
    gamma_pos: float = 2.0,
    gamma_neg: float = 2.0,
    gamma_hc: float = 3.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    logit_offset: Tensor | None = None,
) -> Tensor:
    r"""Cyclical focal loss of logits whose classes are spread over ranks, of which only row sums are exchanged.

    .. math:: L([z_0, z_1, \ldots, z_{W-1}], t)

    with L of :func:`cyclofocal.cyclical_focal_loss` and :math:`z_r` the columns that rank r holds.

    The loss is replicated: every rank gets the same number, and its backward, which exchanges nothing, gives every
    rank the gradient of its columns. So all ranks of the group call this, and backward with the same factor;
    gradients are not to be averaged over this group.

    Limits: those of ``cyclical_focal_loss`` on the joined logits, which it equals.

    Args:
        logits: this rank's columns (N, C_local), ranks in order, C_local from 0 up and not necessarily equal; or a
            DTensor (N, C) sharded on dimension 1 over one dimension of its mesh and replicated over the others.
        target: class indices (N,) among all C classes, or ``ignore_index``; the same on every rank.
        class_weight: factor per class (C,), for all classes and the same on every rank.
        group: process group; None is the default one. Of a DTensor it is that of its mesh.
        shard_sizes: C_local of every rank. None asks the others (8 bytes each; an accelerator's host waits for them).
        eta: mixing weight in [0, 1], a float or a 0-d tensor; see ``schedules.cyclical_eta``.
        gamma_pos: focal exponent of the true class, >= 0.
        gamma_neg: focal exponent of the other classes, >= 0; acts through label smoothing only.
        gamma_hc: high-confidence exponent, >= 0.
        ignore_index: targets of this value add nothing to loss, gradient or denominator.
        reduction: "mean", "sum" or "none".
        label_smoothing: e in [0, 1], spread over all C classes.
        logit_offset: (C,), added to the logits, for all classes and the same on every rank.

    Returns:
        A scalar, or for "none" (N,), the same on every rank; float64 for float64 logits, otherwise float32. The
        gradient has the shape, or the placement, of ``logits``. torch.compile breaks the graph here and runs this
        call as it is.

    Raises:
        ValueError, TypeError, IndexError: an argument does not fit, or one but ``logits`` needs a gradient. What one
            rank alone does wrong only that rank sees, and the others wait for it.
        RuntimeError: there is no process group; backward with ``create_graph``: there is no second derivative; or a
            call inside a ``torch.func`` transform, forward-mode differentiation or ``torch.jit.trace``.

    Example:
        Four ranks of ``torchrun --nproc-per-node 4``, 250 of 1,000 classes each::

            logits = F.linear(hidden, weight[rank * 250 : (rank + 1) * 250])
            sharded_cyclical_focal_loss(logits, target, eta=0.5).backward()

    Reference: M. Shoeybi et al., *Megatron-LM*, arXiv 1909.08053, for cross-entropy over sharded logits.
    """
    settings = SoftmaxSettings(gamma_pos, gamma_neg, gamma_hc, ignore_index, label_smoothing)
    constants = {"eta": eta, "class_weight": class_weight, "target": target, "logit_offset": logit_offset}
    check_no_gradient("sharded_cyclical_focal_loss", **constants)
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("there is no process group; call torch.distributed.init_process_group first")
    if is_transformed() or torch.jit.is_tracing():
        raise RuntimeError(
            "sharded_cyclical_focal_loss exchanges sums between processes, which torch.func transforms, forward-mode"
            " differentiation and torch.jit.trace cannot follow; use cyclical_focal_loss on the joined logits for that"
        )
    if _is_dtensor(logits):
        logits, group, shard_sizes = _unwrap(logits, group, shard_sizes)
    sizes = _check_shards(logits, target, group, shard_sizes)
    joined = logits.new_empty(()).expand(len(logits), sum(sizes))  # one number in memory
    check_factor_per_class(class_weight, joined)
    check_softmax_call(joined, target, None, eta, settings, reduction)

    eta = eta.detach().clone() if isinstance(eta, Tensor) else eta  # a clock may move its tensor before backward
    first = sum(sizes[: dist.get_rank(group)])
    if logit_offset is not None:
        check_factor_per_class(logit_offset, joined, "logit_offset")
        logits = add_offset(logits, logit_offset[first : first + logits.shape[1]], 1)
    call = ShardedCall(group, first, sum(sizes), SoftmaxTerms.of(eta, settings), settings, reduction)
    weight = None if class_weight is None else class_weight.to(compute_dtype(logits.dtype))
    return _ShardedLoss.apply(call, target.to(torch.int64), weight, logits)


def _is_dtensor(tensor: Tensor) -> bool:
    if type(tensor) in (Tensor, torch.nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor  # takes a second to load

    return isinstance(tensor, DTensor)


class _LocalShard(torch.autograd.Function):
    """Local shard of a DTensor; the gradient is a DTensor of the same placement, shape and strides.

    The one of ``to_local`` has strides computed from those of the local shard, which differ where shards are uneven.
    torch 2.6 then replicates the gradient when it accumulates it in a leaf.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Any) -> Tensor:
        ctx.mesh, ctx.placements = tensor.device_mesh, tensor.placements
        ctx.shape, ctx.stride = tensor.shape, tensor.stride()
        local = tensor.to_local()
        return local.view_as(local)  # the graph begins at the view, not at the tensor that the DTensor holds

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(grad, ctx.mesh, ctx.placements, shape=ctx.shape, stride=ctx.stride)


def _unwrap(logits: Any, group: Any, shard_sizes: Sequence[int] | None) -> tuple[Tensor, Any, list[int]]:
    """Return the local columns of a DTensor, their process group, and all shard sizes."""
    from torch.distributed.tensor import Shard

    if group is not None or shard_sizes is not None:
        raise ValueError("logits is a DTensor, which knows its group and shard_sizes; leave both out")
    placements, mesh = logits.placements, logits.device_mesh
    shards = [dim for dim, placement in enumerate(placements) if placement == Shard(1)]
    if logits.dim() != 2 or len(shards) != 1 or not all(p.is_replicate() for p in placements if p != Shard(1)):
        raise ValueError(
            f"logits is a DTensor of shape {tuple(logits.shape)} placed {placements}; it must be (N, C) and Shard(1)"
            " on one dimension of its mesh, Replicate() on the others"
        )
    ranks, classes = mesh.size(shards[0]), logits.shape[1]
    most = -(-classes // ranks)  # as torch.chunk deals them out
    sizes = [max(0, min(most, classes - rank * most)) for rank in range(ranks)]
    return _LocalShard.apply(logits), mesh.get_group(shards[0]), sizes


def _check_shards(logits: Tensor, target: Tensor, group: Any, shard_sizes: Sequence[int] | None) -> list[int]:
    """Check the shards; return the number of classes of every rank."""
    if logits.dim() != 2:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; a shard must be (N, C_local)")
    if _is_dtensor(target):
        raise ValueError("target is a DTensor; pass target.full_tensor(), which is the same on every rank")
    if target.is_floating_point():
        raise TypeError(f"target has dtype {target.dtype}; sharded logits take class indices (int64) only")
    ranks = dist.get_world_size(group)
    if shard_sizes is None:
        shapes = [torch.empty(2, dtype=torch.int64, device=logits.device) for _ in range(ranks)]
        dist.all_gather(shapes, torch.tensor(logits.shape, device=logits.device), group=group)
        rows, sizes = torch.stack(shapes, 1).tolist()
        if len(set(rows)) > 1:
            raise ValueError(f"logits has {rows} rows on ranks 0 to {ranks - 1}; they must agree")
        return sizes
    sizes = list(shard_sizes)
    if len(sizes) != ranks or sizes[dist.get_rank(group)] != logits.shape[1]:
        raise ValueError(
            f"shard_sizes is {sizes}; for {ranks} ranks it must hold {ranks} sizes, {logits.shape[1]} of them this"
            f" rank's (number {dist.get_rank(group)})"
        )
    return sizes


class ShardedCall(NamedTuple):
    """Arguments of forward and backward that are not tensors."""

    group: Any
    first: int
    """First class of this rank."""
    classes: int
    terms: SoftmaxTerms
    settings: SoftmaxSettings
    reduction: str

    @property
    def non_target_prob(self) -> float:
        return self.settings.label_smoothing / self.classes


class _ShardedLoss(torch.autograd.Function):
    """Autograd function of the sharded loss; every (N, 1) tensor is per row and equal on all ranks."""

    @staticmethod
    def forward(ctx: Any, call: ShardedCall, target: Tensor, weight: Tensor | None, logits: Tensor) -> Tensor:
        dtype, ignore_index = compute_dtype(logits.dtype), call.settings.ignore_index
        index = target.unsqueeze(1)
        safe_index = index.clamp(0, call.classes - 1)
        ignored = index == ignore_index
        per_class = None if weight is None else weight[call.first : call.first + logits.shape[1]].unsqueeze(0)
        row_max = _row_max(logits, dtype, call.group)
        sum_exp, target_x, *non_target_sums = _sums(call, logits, row_max, safe_index, per_class)

        factor = torch.full_like(sum_exp, 1 - call.settings.label_smoothing + call.non_target_prob)
        factor.masked_fill_((safe_index != index) & ~ignored, torch.nan)
        factor = factor if weight is None else factor * weight[safe_index]
        lse = sum_exp.log()
        rows, target_d_log_p, _ = call.terms.target(target_x - lse, factor)
        sum_d_log_p = target_d_log_p
        if call.non_target_prob:
            count = call.classes - 1 if weight is None else weight.sum() - weight[safe_index]
            scale = call.terms.power_scale(sum_exp, call.non_target_prob)
            sum_d_log_p = call.terms.add_non_target_rows(
                rows, target_d_log_p, non_target_sums, lse, scale, count, call.non_target_prob
            )
        rows = -rows.masked_fill(ignored, 0).squeeze(1)
        ctx.call, ctx.scale = call, row_scale(target, weight, ignore_index, dtype, call.reduction)
        ctx.save_for_backward(logits, safe_index, ignored, per_class, row_max, sum_exp, target_d_log_p, sum_d_log_p)
        return rows if call.reduction == "none" else rows.sum() * ctx.scale

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "sharded_cyclical_focal_loss has no second derivative, so its backward cannot create a graph"
            )
        logits, safe_index, ignored, per_class, *rows = ctx.saved_tensors
        grad = torch.empty_like(logits)
        batched = is_transformed(grad_loss)  # then nothing can be written in place
        upstream = torch.ones((), dtype=grad_loss.dtype, device=grad_loss.device) if batched else grad_loss
        factor = (-upstream * ctx.scale).expand(len(logits)).unsqueeze(1)
        for out, z, index, ignored_rows, *of_chunk in chunks(grad, logits, safe_index, ignored, factor, *rows):
            out.copy_(_gradient(ctx.call, z, index, per_class, of_chunk).masked_fill_(ignored_rows, 0))
        if batched:
            grad = grad * (grad_loss.unsqueeze(1) if ctx.call.reduction == "none" else grad_loss)
        return None, None, None, grad


def _row_max(logits: Tensor, dtype: torch.dtype, group: Any) -> Tensor:
    """Return the largest logit of every row over all ranks."""
    if logits.shape[1]:
        row_max = logits.detach().amax(1, keepdim=True).to(dtype)
    else:
        row_max = logits.new_full((len(logits), 1), -torch.inf, dtype=dtype)
    dist.all_reduce(row_max, dist.ReduceOp.MAX, group=group)
    return row_max


def _sums(call: ShardedCall, logits: Tensor, row_max: Tensor, safe_index: Tensor, per_class: Tensor | None) -> Tensor:
    """Sum over all classes of all ranks, with x the logit less the row's largest: of exp(x); the target's x; with
    label smoothing, those of ``SoftmaxTerms.row_sums``."""
    n_sums = 2 if not call.non_target_prob else 3 if not call.terms.gamma_neg else 5
    sums = row_max.new_zeros(n_sums, *row_max.shape)
    for z, chunk_max, index, *outs in chunks(logits, row_max, safe_index, *sums):
        x = z - chunk_max
        e = x.exp()
        column, is_local = _locate(call, index, x.shape[1])
        found = [e.sum(1, keepdim=True), torch.where(is_local, x.gather(1, column), 0.0)]
        if call.non_target_prob:
            found += call.terms.row_sums(x, e, per_class, _zero_target(column, is_local))[0]
        for out, of_chunk in zip(outs, found, strict=True):
            out.copy_(of_chunk)
    dist.all_reduce(sums, group=call.group)
    return sums


def _locate(call: ShardedCall, safe_index: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the columns of the targets on this rank, and a mask of the targets that are on this rank."""
    column = safe_index - call.first
    return column.clamp(0, classes - 1), (column >= 0) & (column < classes)


def _set_target(tensor: Tensor, column: Tensor, is_local: Tensor, value: Tensor) -> Tensor:
    return tensor.scatter_(1, column, torch.where(is_local, value, tensor.gather(1, column)))


def _zero_target(column: Tensor, is_local: Tensor) -> Callable[[Tensor], Tensor]:
    def zero_target(tensor: Tensor) -> Tensor:
        return _set_target(tensor, column, is_local, torch.zeros_like(column, dtype=tensor.dtype))

    return zero_target


def _gradient(
    call: ShardedCall,
    logits: Tensor,
    safe_index: Tensor,
    per_class: Tensor | None,
    rows: Sequence[Tensor],
) -> Tensor:
    """Return the gradient of a chunk of this rank's logits."""
    factor, row_max, sum_exp, target_d_log_p, sum_d_log_p = rows
    x = logits - row_max
    e = x.exp()
    column, is_local = _locate(call, safe_index, x.shape[1])
    at_target = factor * (target_d_log_p - x.gather(1, column).exp() / sum_exp * sum_d_log_p)
    if call.non_target_prob:
        focal, products = call.terms.power_terms(x, e, per_class, _zero_target(column, is_local))
    grad = e.mul_((factor * sum_d_log_p / sum_exp).neg_())
    if call.non_target_prob:
        factor = factor * call.non_target_prob
        scale = call.terms.power_scale(sum_exp, factor)
        call.terms.add_non_target_grad(grad, focal, products, sum_exp.log(), scale, per_class, factor)
    return _set_target(grad, column, is_local, at_target)
