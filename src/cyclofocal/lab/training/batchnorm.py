"""Batch normalisation over the batch of all processes."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def sync_batch_norm(model: nn.Module) -> nn.Module:
    """Let batch normalisation see the batch of all processes; torch's own does so on accelerators only."""
    if next(model.parameters()).device.type != "cpu":
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.forward = _SyncedForward(layer)  # type: ignore[method-assign, assignment]
    return model


class _SumOverProcesses(torch.autograd.Function):
    """The sum of all processes' tensors; torch's own that autograd knows is deprecated."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return _sum_over_processes(own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # every process's part is in every sum
        return _sum_over_processes(gradient)


def _sum_over_processes(own: Tensor) -> Tensor:
    total = own.clone()
    dist.all_reduce(total)
    return total


class _SyncedForward:
    """Forward of a batch norm on the CPU with the statistics of all processes; what follows in timm's stays."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        self.layer = layer

    def __call__(self, features: Tensor) -> Tensor:
        layer = self.layer
        normed = self._normed(features) if layer.training else self._plain(features)
        for name in ("drop", "act"):
            if hasattr(layer, name):
                normed = getattr(layer, name)(normed)
        return normed

    def _plain(self, features: Tensor) -> Tensor:
        layer = self.layer
        return F.batch_norm(
            features, layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0, layer.eps
        )

    def _normed(self, features: Tensor) -> Tensor:
        layer = self.layer
        exact = features.float()  # statistics of half-precision features would be rounded
        rows = exact.movedim(1, -1).flatten(0, -2)
        count = rows.new_tensor([float(len(rows))])
        total = _SumOverProcesses.apply(torch.cat([rows.sum(0), count]))
        mean, samples = total[:-1] / total[-1].detach(), total[-1].detach()
        var = _SumOverProcesses.apply(((rows - mean) ** 2).sum(0)) / samples
        with torch.no_grad():
            assert layer.running_mean is not None
            assert layer.running_var is not None
            assert layer.momentum is not None
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked += 1
            layer.running_mean.lerp_(mean, layer.momentum)
            layer.running_var.lerp_(var * samples / (samples - 1), layer.momentum)
        shape = (1, -1, 1, 1)
        scale = layer.weight * (var + layer.eps).rsqrt()
        return ((exact - mean.view(shape)) * scale.view(shape) + layer.bias.view(shape)).to(features.dtype)
