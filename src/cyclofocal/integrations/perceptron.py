"""Multi-layer perceptron for tables, its training over dense and sparse rows, and the state that it resumes from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cyclofocal.integrations.progress import set_clock
from cyclofocal.losses import CyclicalFocalLoss
from cyclofocal.schedules import cosine


def perceptron(
    features: int, hidden_layer_sizes: Sequence[int], classes: int, generator: torch.Generator
) -> nn.Sequential:
    """Make a network with ReLU between its layers, in float64, with the initial weights of Glorot and Bengio (2010)."""
    layers: list[nn.Module] = []
    for units in hidden_layer_sizes:
        layers += [_linear(features, units, generator), nn.ReLU()]
        features = units
    return nn.Sequential(*layers, _linear(features, classes, generator))


def _linear(features: int, units: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, features, units, dtype=torch.float64)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def adam(module: nn.Module) -> torch.optim.Adam:
    parameters = list(module.parameters())
    return torch.optim.Adam(parameters, fused=parameters[0].device.type in ("cpu", "cuda"))


class Rows(NamedTuple):
    """Features (N, F), class indices (N,), and weights (N,) unless every row weighs the same.

    The features are a tensor, or a CSR matrix of scipy, of which one batch at a time is made dense.
    """

    x: Any
    y: Tensor
    weight: Tensor | None

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return features, class indices and weights of the rows of ``index``, on the device of ``y``."""
        weight = None if self.weight is None else self.weight[index]
        return dense(self.x, index).to(self.y.device), self.y[index], weight

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        return (self.batch(index) for index in order.split(batch_size))


def dense(x: Any, index: Tensor) -> Tensor:
    """Return rows of a tensor, or of a CSR matrix, as a tensor."""
    return x[index] if isinstance(x, Tensor) else torch.from_numpy(x[index.numpy()].toarray())


@dataclass
class PerceptronTraining:
    """Training that can be continued: network, loss, optimizer, random order, and the epochs of its cycle."""

    module: nn.Module
    criterion: CyclicalFocalLoss
    optimizer: torch.optim.Adam
    generator: torch.Generator
    epochs_done: int = 0

    def run_epoch(
        self, rows: Rows, *, batch_size: int, learning_rate: float, weight_decay: float, max_epochs: int
    ) -> float:
        """Train on every row once, in random order, as the next epoch of a cycle; return the mean loss.

        The learning rate falls to 0 over the cycle, as half a cosine. The decay of weights is decoupled and normalized
        by the root of the steps, so that a longer training needs no other value; biases, which hold the class
        frequencies, do not decay.

        Reference: I. Loshchilov and F. Hutter, *Decoupled Weight Decay Regularization*, arXiv 1711.05101.
        """
        order = torch.randperm(len(rows), generator=self.generator)
        steps = -(-len(rows) // batch_size)
        total_steps = max_epochs * steps
        weights = [value for value in self.module.parameters() if value.dim() > 1]
        losses, mass = [], []
        for number, batch in enumerate(rows.batches(order, batch_size), self.epochs_done * steps):
            set_clock(self.criterion, number, total_steps)
            rate = learning_rate * cosine(1 - number / total_steps)
            losses.append(self._backward(*batch))
            with torch.no_grad():
                for value in weights:  # AdamW with a second group for the biases would take longer
                    value.mul_(1 - rate * weight_decay / total_steps**0.5)
            self.optimizer.param_groups[0]["lr"] = rate
            self.optimizer.step()
            mass.append(len(batch[0]) if batch[2] is None else batch[2].sum())
        self.epochs_done += 1
        return _average(losses, mass)

    def _backward(self, x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        """Compute the loss of a batch and its gradient."""
        loss = self.criterion(self.module(x), y, weight)
        self.optimizer.zero_grad()
        loss.backward()
        return loss.detach()

    @torch.inference_mode()
    def validation_loss(self, rows: Rows, batch_size: int) -> float:
        """Return the plain cross-entropy, with the offset that the criterion adds in training only."""
        self.criterion.eval()
        offset = 0 if self.criterion.logit_offset is None else self.criterion.logit_offset
        losses, mass = [], []
        for x, y, weight in rows.batches(torch.arange(len(rows)), batch_size):
            losses.append(self.criterion(self.module(x) + offset, y, weight))
            mass.append(len(x) if weight is None else weight.sum())
        self.criterion.train()
        return _average(losses, mass)


def _average(losses: Sequence[Tensor], mass: Sequence[Any]) -> float:
    """Return the mean of the batches' losses, weighted by the rows in them."""
    values = torch.stack(list(losses)).double()
    factors = torch.as_tensor(mass, dtype=torch.float64, device=values.device)
    return float((values * factors).sum() / factors.sum())
