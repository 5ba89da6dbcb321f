"""Small networks with all kinds of connections between channels, for tests of channel removal.

Their running statistics, scales and shifts are random, so that no wrong channel has an effect of 0.
"""

import timm
import torch
import torchvision
from torch import nn
from torchvision.models import resnet as tv_resnet
from torchvision.models import vgg as tv_vgg

from robust_plugin.recipes.models import networks

SHAPE = (3, 32, 32)


class Concat(nn.Module):
    """Two convolutions whose outputs are concatenated and read by a norm and a convolution.

    The output of one of them is also added to a later result.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(20)
        self.both = nn.Conv2d(20, 8, 1)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x):
        left = self.left(x)
        both = self.both(torch.relu(self.norm(torch.cat([left, self.right(x)], 1))))
        return self.head(nn.functional.adaptive_avg_pool2d(both + left, 4).flatten(1))


def biased_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2, padding=1, groups=2),
        nn.PReLU(16),
        nn.Conv2d(16, 8, 3, stride=2),
        nn.InstanceNorm2d(8, affine=True),
        nn.ConvTranspose2d(8, 8, 2, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 14 * 14, 20),
        nn.ReLU(),
        nn.Linear(20, 10),
    )


def vgg16_bn() -> nn.Module:
    """VGG-16 with batch norm at an eighth of its width, without the last pool (2x2 maps)."""
    widths = [w if isinstance(w, str) else w // 8 for w in tv_vgg.cfgs["D"]][:-1]
    features = tv_vgg.make_layers(widths, batch_norm=True)
    head = [nn.Linear(64 * 4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)]
    return nn.Sequential(features, nn.Flatten(), *head)


def bottlenecks(**options) -> nn.Module:
    return tv_resnet.ResNet(
        tv_resnet.Bottleneck, options.pop("layers", [1, 1, 1, 1]), num_classes=10, **options
    )


BUILD = {
    "resnet18": lambda: networks.resnet18(10, SHAPE, width=8),
    "resnet18-torchvision": lambda: torchvision.models.resnet18(num_classes=10),
    "wrn-10-2": lambda: networks.wide_resnet(10, SHAPE, depth=10, width=2),
    "vgg16-bn": vgg16_bn,
    "cnn": biased_cnn,
    "concat": Concat,
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 3, 2), 16, num_classes=10),
    "mobilenet-v2": lambda: torchvision.models.mobilenet_v2(
        num_classes=10, width_mult=0.25, dropout=0.0
    ),
    "resnet50": lambda: bottlenecks(layers=[3, 4, 6, 3], width_per_group=8),
    "resnext": lambda: bottlenecks(groups=4, width_per_group=8),
    "regnet": lambda: timm.create_model("regnety_002", num_classes=10),
    "mobilenet-v3": lambda: torchvision.models.mobilenet_v3_small(
        num_classes=10, width_mult=0.5, dropout=0.0
    ),
    "googlenet": lambda: torchvision.models.googlenet(
        num_classes=10, aux_logits=False, init_weights=False, dropout=0.0, dropout_aux=0.0
    ),
    "squeezenet": lambda: torchvision.models.squeezenet1_1(num_classes=10, dropout=0.0),
}


def build(name: str) -> nn.Module:
    """Return a network in evaluation mode with random running statistics, scales and shifts."""
    torch.manual_seed(0)
    model = BUILD[name]().eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.3, 0.3), layer.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5), nn.init.uniform_(layer.bias, 0.1, 0.6)
        elif isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.uniform_(layer.bias, 0.1, 0.6)  # so that no channel is dead
    return model
