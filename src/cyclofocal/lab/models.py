"""Small networks for small images."""

from torch import Tensor, nn


class SmallConvNet(nn.Module):
    """Two 3 x 3 convolutions with batch norm, a max-pooling that halves the image, and a linear classifier.

    Args:
        classes: number of logits.
        width: channels of the first convolution; the second has twice as many.
        image_size: height and width of the input in pixels, even.
        channels: colour channels of the input.

    Example:
        >>> import torch
        >>> SmallConvNet(classes=10)(torch.zeros(4, 1, 8, 8)).shape
        torch.Size([4, 10])
    """

    def __init__(self, classes: int, width: int = 16, image_size: int = 8, channels: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _convolution(channels, width), _convolution(width, 2 * width), nn.MaxPool2d(2), nn.Flatten()
        )
        self.classifier = nn.Linear(2 * width * (image_size // 2) ** 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, channels, image_size, image_size)."""
        return self.classifier(self.features(images))


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
