"""
Very many classes
=================

``linear_cyclical_focal_loss`` takes the input and the weight of the last layer and never
materialises all logits. The picture has the largest tensor that a forward and backward pass
creates.
"""

import matplotlib.pyplot as plt
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cyclofocal import cyclical_focal_loss, linear_cyclical_focal_loss

ROWS, FEATURES = 512, 16


class LargestTensor(TorchDispatchMode):
    """Record the size of the largest tensor that an operation returns, in MiB."""

    mib = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.mib = max(self.mib, tensor.untyped_storage().nbytes() / 2**20)
        return result


def full(hidden, weight, target):
    """Compute the loss from the logits of all classes."""
    return cyclical_focal_loss(hidden @ weight.T, target, eta=0.5)


def chunked(hidden, weight, target):
    """Compute the same loss from the logits of 32 rows at a time; by default a chunk has 144 MiB of them on a CPU."""
    return linear_cyclical_focal_loss(hidden, weight, target, eta=0.5, chunk_rows=32)


# %%
# Value and gradients are the same.

torch.manual_seed(0)
sizes = [1_000, 4_000, 16_000, 64_000]
largest = {full: [], chunked: []}
for classes in sizes:
    values = []
    for function, found in largest.items():
        hidden = torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(1)).requires_grad_()
        weight = torch.randn(classes, FEATURES, generator=torch.Generator().manual_seed(2)).requires_grad_()
        with LargestTensor() as mode:
            loss = function(hidden, weight, torch.arange(ROWS) % classes)
            loss.backward()
        found.append(mode.mib)
        values.append((loss.detach(), hidden.grad))
    torch.testing.assert_close(values[0], values[1])

# %%

figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
for function, label in ((full, "all logits"), (chunked, "32 rows at a time")):
    axes.plot(sizes, largest[function], marker="o", label=label)
axes.set(xscale="log", yscale="log", xlabel="classes", ylabel="largest tensor, MiB", title=f"{ROWS} rows, float32")
axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
axes.legend(frameon=False)
plt.show()
