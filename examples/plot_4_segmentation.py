"""
Segmentation
============

Pixels are counted as images are, and the loss takes masks of class indices as they are. Here 1 to 2
% of the pixels belong to small discs in noise, and pixels at the border are not labelled.
"""

import matplotlib.pyplot as plt
import torch

from cyclofocal import CyclicalFocalLoss, class_counts

SIZE, UNLABELLED = 48, 255
generator = torch.Generator().manual_seed(0)
grid = torch.stack(torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij"))


def samples(n):
    """Return images (n, 1, SIZE, SIZE) and masks (n, SIZE, SIZE) of a disc each."""
    centres = torch.randint(8, SIZE - 8, (n, 2, 1, 1), generator=generator)
    mask = ((grid - centres).square().sum(1) <= 9).long()
    images = 0.8 * mask + 0.5 * torch.randn(n, SIZE, SIZE, generator=generator)
    return images.unsqueeze(1), mask


images, masks = samples(256)
masks[:, :2] = UNLABELLED
counts = class_counts(masks, 2, ignore_index=UNLABELLED)
print(f"{100 * counts[1] / counts.sum():.1f} % of the labelled pixels belong to a disc")

# %%
# The loss from the counts predicts for classes that are equally likely: few discs are missed, at
# the price of more false alarms. Which of the two is right depends on their cost.

STEPS = 120
losses = {
    "cross-entropy": torch.nn.CrossEntropyLoss(ignore_index=UNLABELLED),
    "from counts, tau 1": CyclicalFocalLoss.from_counts(counts, tau=1.0, ignore_index=UNLABELLED, total_steps=STEPS),
}
predictions, (shown, truth) = {}, samples(64)
for name, criterion in losses.items():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 5, padding=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 5, padding=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 2, 1),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(STEPS):
        rows = slice(16 * (step % 16), 16 * (step % 16) + 16)
        optimizer.zero_grad()
        criterion(model(images[rows]), masks[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        predictions[name] = model(shown).argmax(1)

# %%

figure, axes = plt.subplots(1, 4, figsize=(10, 3), layout="constrained")
for panel, (title, image) in zip(axes, [("image", shown[0, 0]), ("mask", truth[0])], strict=False):
    panel.set_title(title)
    panel.imshow(image, cmap="gray")
for panel, (name, predicted) in zip(axes[2:], predictions.items(), strict=True):
    found = 100 * (predicted[truth == 1] == 1).float().mean()
    correct = 100 * (truth[predicted == 1] == 1).float().mean()
    panel.set_title(f"{name}\nrecall {found:.0f} %, precision {correct:.0f} %", fontsize=9)
    panel.imshow(predicted[0], cmap="gray")
for panel in axes:
    panel.set_axis_off()
plt.show()
