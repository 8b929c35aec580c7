"""The `rust-cnn` system's classifier: three convolutions and two dense layers over a tile resized to 32x32 RGB."""

from __future__ import annotations

from torch import Tensor, nn

from export.networks.state_shapes import StateDict, shape_at


class RustCnn(nn.Module):
    """One logit per class, (n, channels, 32, 32) float32 -> (n, classes); parameters are named as the system's own.

    widths: of the three convolutions, 3x3 with padding 1, each followed by ReLU and 2x2 max pooling.
    features: values that the first dense layer takes, widths[2] * height / 8 * width / 8. hidden: values that it gives.
    """

    stride = 8

    def __init__(
        self,
        classes: int = 2,
        channels: int = 3,
        widths: tuple[int, int, int] = (32, 64, 128),
        features: int = 2048,
        hidden: int = 512,
    ) -> None:
        super().__init__()
        levels = [
            layer
            for inputs, outputs in zip((channels, *widths[:-1]), widths, strict=True)
            for layer in (nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        ]
        self.conv_layers = nn.Sequential(*levels)
        self.fc_layers = nn.Sequential(
            nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, classes)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits of normalised images."""
        scores: Tensor = self.fc_layers(self.conv_layers(image))
        return scores


def build_rust_cnn(state: StateDict) -> RustCnn:
    """The network with a state dict's widths and classes. Raises ExportError where it has no such layers."""
    first, second, third = (shape_at(state, f"conv_layers.{index}.weight", 4) for index in (0, 3, 6))
    hidden, features = shape_at(state, "fc_layers.1.weight", 2)
    classes = shape_at(state, "fc_layers.4.weight", 2)[0]
    return RustCnn(classes, first[1], (first[0], second[0], third[0]), features, hidden)
