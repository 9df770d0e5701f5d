"""
Many labels per sample
======================

``BinaryCyclicalFocalLoss`` decides about every label on its own. From the positives of each label
and the number of samples it takes the prior of every label, or weights of its two sides.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.metrics import f1_score

from cyclofocal import BinaryCyclicalFocalLoss

generator = torch.Generator().manual_seed(0)
shares = torch.tensor([0.5, 0.2, 0.1, 0.05, 0.02, 0.01])
directions = torch.randn(20, 6, generator=generator)


def samples(n):
    """Return features (n, 20) and labels (n, 6), the last of which are rare."""
    x = torch.randn(n, 20, generator=generator)
    scores = x @ directions / 20**0.5 + 0.3 * torch.randn(n, 6, generator=generator)
    limits = torch.stack([scores[:, label].quantile(1 - share) for label, share in enumerate(shares)])
    return x, (scores > limits).long()


x, y = samples(2000)
x_test, y_test = samples(4000)

# %%
# The rare labels are hardly ever predicted with binary cross-entropy.

STEPS = 600
positives = y.sum(0)
losses = {
    "binary cross-entropy": lambda logits, target: torch.nn.functional.binary_cross_entropy_with_logits(
        logits, target.float()
    ),
    "cyclical, from counts": BinaryCyclicalFocalLoss.from_counts(
        positives, len(y), class_weight="sqrt", total_steps=STEPS
    ),
}
scores = {}
for name, criterion in losses.items():
    torch.manual_seed(0)
    model = torch.nn.Linear(20, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(STEPS):
        rows = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        criterion(model(x[rows]), y[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        scores[name] = 100 * f1_score(y_test, model(x_test) > 0, average=None, zero_division=0)

# %%

figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
for shift, (name, values) in zip((-0.2, 0.2), scores.items(), strict=True):
    axes.bar(np.arange(6) + shift, values, width=0.38, label=name)
axes.set_xticks(range(6), [f"{100 * share:g} %" for share in shares.tolist()])
axes.set(xlabel="share of samples that have the label", ylabel="F1, %", title="Six labels, one seed")
axes.legend(frameon=False)
plt.show()
