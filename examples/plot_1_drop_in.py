"""
In place of cross-entropy
=========================

A training loop changes in one line: the loss is given the number of steps of the whole training,
counts them itself, and is cross-entropy in eval mode.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from cyclofocal import CyclicalFocalLoss

EPOCHS, BATCH = 30, 64
images, labels = load_digits(return_X_y=True)
parts = train_test_split(images / 16, labels, test_size=0.5, stratify=labels, random_state=0)
x, x_test = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
y, y_test = (torch.tensor(part) for part in parts[2:])
steps = EPOCHS * (len(x) // BATCH)

# %%
# Two losses, the same network and the same order of the data.

losses = {
    "cross-entropy": torch.nn.CrossEntropyLoss(),
    "cyclical focal": CyclicalFocalLoss(gamma_hc=2.0, total_steps=steps),
}
errors = {}
for name, criterion in losses.items():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    errors[name] = []
    for _ in range(EPOCHS):
        order = torch.randperm(len(x))
        for batch in range(len(x) // BATCH):
            rows = order[batch * BATCH : (batch + 1) * BATCH]
            optimizer.zero_grad()
            criterion(model(x[rows]), y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            errors[name].append(100 * (model(x_test).argmax(1) != y_test).float().mean().item())

# %%
# One seed shows that it trains, and nothing about which loss is better: for that, compare many
# seeds (``cyclofocal compare``).

figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
for name, values in errors.items():
    axes.plot(range(1, EPOCHS + 1), values, label=name)
axes.set(xlabel="epoch", ylabel="test error, %", yscale="log", title="Handwritten digits, one seed")
axes.legend(frameon=False)
plt.show()
