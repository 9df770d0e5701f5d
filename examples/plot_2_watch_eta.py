"""
Watch eta
=========

The loss mixes two weights by eta, which goes from 1 to 0 and back to 1 while the loss counts its
steps. At eta 1 confident samples weigh most, at eta 0 it is the focal loss.
"""

import matplotlib.pyplot as plt
import torch

from cyclofocal import CyclicalFocalLoss, cyclical_focal_loss

STEPS = 200
criterion = CyclicalFocalLoss(total_steps=STEPS)
model = torch.nn.Linear(5, 3)
etas = []
for _ in range(STEPS):
    criterion(model(torch.randn(8, 5)), torch.randint(3, (8,))).backward()
    etas.append(float(criterion.eta))  # a copy: the tensor itself changes with every step

# %%
# The weight of a sample is its loss divided by its cross-entropy. Two logits whose difference is
# that of the log-probabilities give any probability p of the true class.

p = torch.linspace(0.01, 0.99, 99)
logits = torch.stack([p.log(), (1 - p).log()], dim=1)
target = torch.zeros(len(p), dtype=torch.long)
weights = {
    eta: cyclical_focal_loss(logits, target, eta=eta, reduction="none") / -p.log()
    for eta in (1.0, 0.75, 0.5, 0.25, 0.0)
}

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
left.plot(range(1, STEPS + 1), etas, color="black")
left.set(xlabel="optimiser step", ylabel="eta", title="One cycle, cyclical_factor 4")
for eta, values in weights.items():
    right.plot(p, values, label=f"eta {eta:g}", color=plt.cm.viridis(0.9 * eta))
right.set(xlabel="probability p of the true class", ylabel="weight", title="Weight of a sample")
right.legend(frameon=False)
plt.show()
