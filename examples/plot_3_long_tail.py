"""
A long tail, with the class prior
=================================

Handwritten digits with 100 training images of the first class and 2 of the last. The loss is made
from the class counts: with ``tau=1.0`` the logarithm of the class prior is added to the logits in
training (logit adjustment), and rare classes are no longer drowned by frequent ones.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits

from cyclofocal import CyclicalFocalLoss, class_counts

images, labels = load_digits(return_X_y=True)
wanted = np.geomspace(100, 2, 10).round().astype(int)
order = np.random.default_rng(0).permutation(len(labels))
train = np.concatenate([order[labels[order] == c][:n] for c, n in enumerate(wanted)])
test = np.setdiff1d(order, train)
x, x_test = (torch.tensor(images[rows] / 16, dtype=torch.float32) for rows in (train, test))
y, y_test = (torch.tensor(labels[rows]) for rows in (train, test))

# %%
# Three losses. ``plain`` is cross-entropy, as all gammas are 0.

STEPS = 600
counts = class_counts(y)
plain = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0}
losses = {
    "cross-entropy": torch.nn.CrossEntropyLoss(),
    "with the prior": CyclicalFocalLoss.from_counts(counts, tau=1.0, total_steps=STEPS, **plain),
    "cyclical, with the prior": CyclicalFocalLoss.from_counts(counts, tau=1.0, total_steps=STEPS),
}
recall = {}
for name, criterion in losses.items():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(STEPS):
        rows = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        criterion(model(x[rows]), y[rows]).backward()
        optimizer.step()
    hits = (model(x_test).argmax(1) == y_test).double()
    recall[name] = np.array([100 * hits[y_test == c].mean().item() for c in range(10)])

# %%
# One seed; twenty paired seeds of this experiment are in the page on imbalanced data.

figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
for shift, (name, values) in zip((-0.27, 0.0, 0.27), recall.items(), strict=True):
    axes.bar(np.arange(10) + shift, values, width=0.26, label=f"{name}: mean {values.mean():.0f} %")
axes.set_xticks(range(10), [f"{c}\n{n}" for c, n in enumerate(counts.tolist())])
axes.set(xlabel="class, and its training images", ylabel="recall, %", ylim=(0, 135), yticks=range(0, 101, 20))
axes.legend(frameon=False, loc="upper center", ncols=3, fontsize="small")
plt.show()
