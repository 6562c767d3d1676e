"""The networks of the exercise, each with a student of at most a quarter of its parameters."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["MODELS", "ResNet", "build", "parameters"]

MODELS = ("small", "resnet20", "resnet18_quarter", "resnet18")


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm around a residual connection.

    ``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))``, where the shortcut is a 1x1
    convolution with batch norm when the shape changes and the identity otherwise.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, outputs, H / stride, W / stride)``."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """Residual network for small images: a 3x3 stem and no pooling before the last layer.

    Args:
        channels: channels of the images.
        classes: number of classes.
        width: channels of the first stage; each later stage doubles them and halves H and W.
        depth: residual blocks in a stage.
        stages: number of stages.

    Raises:
        ValueError: an argument is smaller than 1.

    Reference:
        He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015, section 4.2.
    """

    def __init__(
        self, channels: int, classes: int, width: int = 32, depth: int = 2, stages: int = 3
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "classes": classes}
        sizes |= {"width": width, "depth": depth, "stages": stages}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"ResNet: {name} must be at least 1, got {value}")
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        blocks: list[nn.Module] = []
        inputs = width
        for stage in range(stages):
            for index in range(depth):
                outputs = width * 2**stage
                blocks.append(Block(inputs, outputs, 2 if stage and not index else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, channels, H, W)`` to logits ``(N, classes)``."""
        x = self.blocks(self.relu(self.bn(self.stem(x))))
        out: Tensor = self.fc(self.flatten(self.pool(x)))
        return out


def build(name: str, channels: int, classes: int, *, student: bool = False) -> nn.Module:
    """Build a network of the exercise, or the student that distillation trains in its place.

    ``small`` is a 14-layer residual network of width 32; its student has 8 layers of width 16.
    ``resnet20`` is He et al.'s for CIFAR-10 (width 16, 0.27 million parameters) but for 1x1
    convolutions where shapes change; its student has 8 layers of width 12.
    ``resnet18`` is torchvision's with the stem for small images (3x3, stride 1, no pooling); its
    student has one block in each of the four stages and half the width. ``resnet18_quarter`` is the
    same at a quarter of the width (0.70 million parameters); its student does without the last
    stage, which holds three quarters of them.

    Args:
        name: one of :data:`MODELS`.
        channels: channels of the images.
        classes: number of classes.
        student: build the student, with at most a quarter of the parameters.

    Returns:
        The network with fresh weights from torch's global generator.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in MODELS:
        raise ValueError(f"model: must be one of {', '.join(MODELS)}, got {name!r}")
    if name == "small":
        shape = {"width": 16, "depth": 1} if student else {"width": 32, "depth": 2}
        return ResNet(channels, classes, **shape)
    if name == "resnet20":
        return ResNet(channels, classes, width=12 if student else 16, depth=1 if student else 3)
    if name == "resnet18_quarter":
        return ResNet(channels, classes, width=16, stages=3 if student else 4)
    if student:
        return ResNet(channels, classes, width=32, depth=1, stages=4)
    from torchvision.models import resnet18

    model: nn.Module = resnet18(weights=None, num_classes=classes)
    model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def parameters(model: nn.Module) -> int:
    """Return the number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())
