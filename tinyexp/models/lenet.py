"""LeNet-5 and a variant one layer deeper, which can take over LeNet-5's weights by name and shape."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

_LEAST_SIZE = 12  # px: 12, pooled 6, after a 5x5 kernel 2, pooled 1


class LeNet5(nn.Module):
    """Gradient-Based Learning Applied to Document Recognition (LeCun et al., 1998), with ReLU and max-pooling.

    (N, in_channels, image_size, image_size) -> logits (N, num_classes). Raises ValueError for images too small for it.
    """

    def __init__(
        self, *, num_classes: int = 10, in_channels: int = 1, image_size: int = 28, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if image_size < _LEAST_SIZE:
            raise ValueError(f"LeNet needs images of at least {_LEAST_SIZE} px, got image_size={image_size}")
        side = (image_size // 2 - 4) // 2  # px, of the maps that reach fc1: 5 for images of 28
        self.conv1 = nn.Conv2d(in_channels, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.dropout = nn.Dropout(dropout)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc3(self.dropout(self.embed(images)))
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """What the last layer sees: images (N, C, H, W) -> (N, 84)."""
        maps = max_pool2d(relu(self.conv1(images)), 2)
        maps = max_pool2d(relu(self.conv2(maps)), 2)
        return relu(self.fc2(relu(self.fc1(maps.flatten(1)))))


class LeNet6(LeNet5):
    """LeNet5 with one more layer: its fc3 is 84 -> 64 and hidden, fc4 gives the logits (N, num_classes)."""

    def __init__(
        self, *, num_classes: int = 10, in_channels: int = 1, image_size: int = 28, dropout: float = 0.0
    ) -> None:
        super().__init__(num_classes=64, in_channels=in_channels, image_size=image_size, dropout=dropout)
        self.fc4 = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc4(self.dropout(relu(self.fc3(self.embed(images)))))
        return logits
