"""The networks of the papers, each as a function of (classes, shape).

classes is the number of logits, and shape the (channels, height, width) of one input. Networks are
nn.Sequential, except the residual blocks and ResNet-50. Weights get random values by PyTorch's
defaults.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]
Window = tuple[int, int, int]  # of a convolution or pooling: kernel, stride, padding


class BasicBlock(nn.Module):
    """Residual block relu(F(x) + shortcut(x)), F = conv3x3-BN-ReLU-conv3x3-BN.

    It is that of He et al. 2016, figure 2. Where the number of channels or the size changes, the
    shortcut is a 1x1 convolution with BN; elsewhere it is the identity.

    Args:
        channels: number of input channels.
        width: number of output channels.
        stride: stride of the first convolution.
    """

    def __init__(self, channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, width, stride=stride)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels, H, W] to [N, width, H / stride, W / stride]."""
        out = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class PreactivationBlock(nn.Module):
    """Residual block F(x) + shortcut(x), F = BN-ReLU-conv3x3-BN-ReLU-conv3x3.

    Where the number of channels or the size changes, the shortcut is a 1x1 convolution of
    relu(BN(x)) (Zagoruyko and Komodakis 2016); elsewhere it is the identity.

    Args:
        channels: number of input channels.
        width: number of output channels.
        stride: stride of the first convolution.
    """

    def __init__(self, channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = _conv3x3(channels, width, stride=stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width)
        self.shortcut: nn.Module | None = None
        if stride != 1 or channels != width:
            self.shortcut = nn.Conv2d(channels, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels, H, W] to [N, width, H / stride, W / stride]."""
        activated = torch.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        out: Tensor = self.conv2(torch.relu(self.norm2(self.conv1(activated))))
        return out + shortcut


def digits_cnn(classes: int, shape: Shape) -> nn.Module:
    """Return three 3x3 convolutions and two linear layers: 89,632 weights on 8x8 digits."""
    return _plain_cnn(shape, [(32, (3, 1, 1)), (64, (3, 2, 1)), (64, (3, 2, 1))], [128, classes])


def digits_cnn_small(classes: int, shape: Shape) -> nn.Module:
    """Return Conv16-Conv32-FC100 for certified training: 56,952 weights on 8x8 digits."""
    return _plain_cnn(shape, [(16, (3, 1, 1)), (32, (3, 2, 1))], [100, classes])


def cnn_small(classes: int, shape: Shape) -> nn.Module:
    """Return CNN-small for certified training (Wong and Kolter 2018)."""
    return _plain_cnn(shape, [(16, (4, 2, 1)), (32, (4, 2, 1))], [100, classes])


def cnn_large(classes: int, shape: Shape) -> nn.Module:
    """Return CNN-large for certified training (Wong et al. 2018)."""
    convs = [(32, (3, 1, 1)), (32, (4, 2, 1)), (64, (3, 1, 1)), (64, (4, 2, 1))]
    return _plain_cnn(shape, convs, [512, 512, classes])


def vgg16_bn(classes: int, shape: Shape) -> nn.Module:
    """Return VGG-16 for CIFAR: 13 convolutions with BN, then 512-256-256-classes (HYDRA)."""
    channels = shape[0]
    layers: list[nn.Module] = []
    for stage, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [_conv3x3(channels, stage), nn.BatchNorm2d(stage), nn.ReLU()]
            channels = stage
        layers.append(nn.MaxPool2d(2))
    height, width = _size_after(shape[1:], [(2, 2, 0)] * 5)
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers),
            flatten=nn.Flatten(1),
            classifier=_linear_layers(channels * height * width, [256, 256, classes]),
        )
    )


def resnet18(classes: int, shape: Shape, *, width: int = 64) -> nn.Module:
    """Return ResNet-18 for CIFAR: 3x3 stem, no max-pool, stages of 1, 2, 4 and 8 times width."""
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(_conv3x3(shape[0], width), nn.BatchNorm2d(width), nn.ReLU()),
            stage1=_stage(BasicBlock, 2, width, width, stride=1),
            stage2=_stage(BasicBlock, 2, width, 2 * width, stride=2),
            stage3=_stage(BasicBlock, 2, 2 * width, 4 * width, stride=2),
            stage4=_stage(BasicBlock, 2, 4 * width, 8 * width, stride=2),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(1),
            classifier=nn.Linear(8 * width, classes),
        )
    )


def resnet50(classes: int, shape: Shape) -> nn.Module:
    """Return torchvision's ResNet-50 for ImageNet: 7x7 stem, max-pool (He et al. 2016)."""
    from torchvision import models

    network = models.resnet50(num_classes=classes)
    if shape[0] != 3:
        network.conv1 = nn.Conv2d(shape[0], 64, 7, stride=2, padding=3, bias=False)
    found: nn.Module = network
    return found


def wide_resnet(classes: int, shape: Shape, *, depth: int = 28, width: int = 4) -> nn.Module:
    """Return WideResNet-depth-width, pre-activation, no dropout (Zagoruyko and Komodakis 2016).

    Args:
        classes: number of logits.
        shape: (channels, height, width) of one input.
        depth: number of layers, which is 6 n + 4 for n blocks per stage.
        width: factor by which the stages have more channels than 16, 32 and 64.

    Raises:
        ValueError: if depth is not 6 n + 4 with n at least 1.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth={depth}: a WideResNet has 6 n + 4 layers: 10, 16, 22, 28, ...")
    blocks = (depth - 4) // 6
    return nn.Sequential(
        OrderedDict(
            stem=_conv3x3(shape[0], 16),
            stage1=_stage(PreactivationBlock, blocks, 16, 16 * width, stride=1),
            stage2=_stage(PreactivationBlock, blocks, 16 * width, 32 * width, stride=2),
            stage3=_stage(PreactivationBlock, blocks, 32 * width, 64 * width, stride=2),
            norm=nn.BatchNorm2d(64 * width),
            relu=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(1),
            classifier=nn.Linear(64 * width, classes),
        )
    )


def _conv3x3(channels: int, width: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)  # BN adds a bias


def _size_after(size: tuple[int, int], windows: Sequence[Window]) -> tuple[int, int]:
    """Return (height, width) of an image after a sequence of convolutions or poolings.

    Args:
        size: (height, width) of the input, in pixels.
        windows: (kernel, stride, padding) of each layer.

    Raises:
        ValueError: if nothing would be left of the image.
    """
    height, width = size
    for kernel, stride, padding in windows:
        height = (height + 2 * padding - kernel) // stride + 1
        width = (width + 2 * padding - kernel) // stride + 1
        if min(height, width) < 1:
            raise ValueError(f"inputs of {size[0]}x{size[1]} pixels are too small for this network")
    return height, width


def _linear_layers(inputs: int, widths: Sequence[int]) -> nn.Sequential:
    """Return linear layers with a ReLU between each two.

    Args:
        inputs: number of inputs of the first layer.
        widths: number of outputs of each layer.
    """
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers[:-1])


def _plain_cnn(
    shape: Shape, convolutions: Sequence[tuple[int, Window]], widths: Sequence[int]
) -> nn.Module:
    """Return a network of convolutions and then linear layers, with a ReLU between each two.

    Args:
        shape: (channels, height, width) of one input.
        convolutions: number of output channels and (kernel, stride, padding) of each convolution.
        widths: number of outputs of each linear layer.
    """
    channels = shape[0]
    layers: list[nn.Module] = []
    for width, (kernel, stride, padding) in convolutions:
        layers += [nn.Conv2d(channels, width, kernel, stride=stride, padding=padding), nn.ReLU()]
        channels = width
    height, width = _size_after(shape[1:], [window for _, window in convolutions])
    return nn.Sequential(*layers, nn.Flatten(1), *_linear_layers(channels * height * width, widths))


def _stage(
    block: type[BasicBlock] | type[PreactivationBlock],
    depth: int,
    channels: int,
    width: int,
    *,
    stride: int,
) -> nn.Sequential:
    """Return a sequence of residual blocks, of which only the first has a stride.

    Args:
        block: class of the blocks.
        depth: number of blocks.
        channels: number of input channels of the first block.
        width: number of output channels of every block.
        stride: stride of the first block.
    """
    rest = (block(width, width, stride=1) for _ in range(depth - 1))
    return nn.Sequential(block(channels, width, stride=stride), *rest)
