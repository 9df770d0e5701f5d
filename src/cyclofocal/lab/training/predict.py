"""Predict the logits of images, once each and in order, on any number of processes."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cyclofocal.lab.training.batches import BatchLoader

if TYPE_CHECKING:
    from accelerate import Accelerator


@torch.no_grad()
def predict(
    model: nn.Module, source: BatchLoader, n_images: int, batch_size: int, accelerator: "Accelerator"
) -> Tensor:
    """Logits (n_images, C) in float32 on the CPU, the same in every process.

    Each process predicts every world_size-th image; their logits are padded to one length, gathered, and put in order.
    """
    training = model.training
    model.eval()
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = torch.arange(rank, n_images, world)
    if len(mine) < -(-n_images // world):
        mine = torch.cat([mine, torch.zeros(1, dtype=mine.dtype)])  # dropped again below
    with accelerator.autocast():
        parts = [model(batch).float() for batch in source.eval_batches(mine.split(batch_size))]
    model.train(training)
    gathered = accelerator.gather(torch.cat(parts))  # (world * N, C), process by process
    return gathered.view(world, len(mine), -1).transpose(0, 1).flatten(0, 1)[:n_images].cpu()
