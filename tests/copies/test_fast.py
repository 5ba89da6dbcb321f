"""A fast copy computes what the network computes, or is no folded copy at all."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from robust_plugin import HydraPruner
from robust_plugin.copies.fast import fast_copy


def trained_statistics(model, x):
    """BatchNorm statistics and weights that a fold has to respect."""
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(x)
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_()
    return model.eval()


@pytest.mark.parametrize(
    "build",
    [
        lambda: torchvision.models.resnet18(num_classes=7),
        lambda: torchvision.models.densenet121(num_classes=7),
        lambda: timm.create_model("mobilenetv3_small_050", num_classes=7),
    ],
    ids=["resnet18", "densenet121", "mobilenetv3"],
)
def test_folded_networks_give_the_same_logits_and_gradients(build):
    x = torch.rand(4, 3, 64, 64)
    model = trained_statistics(build(), x)
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    fast = fast_copy(model, x)
    left = sum(isinstance(layer, nn.BatchNorm2d) for layer in fast.modules())
    assert left < norms
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    out = [network(each) for network, each in zip((model, fast), inputs, strict=True)]
    grads = [torch.autograd.grad(o.sum(), i)[0] for o, i in zip(out, inputs, strict=True)]
    for ours, theirs in ((out[1], out[0]), (grads[1], grads[0])):
        assert float((ours - theirs).detach().norm()) < 1e-3 * float(theirs.detach().norm())


def test_masks_are_applied_and_the_model_is_left_alone(cnn, batch):
    model = trained_statistics(cnn(), batch[0])
    HydraPruner(model, 0.2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = fast_copy(model, batch[0])
    torch.testing.assert_close(fast(batch[0]), model(batch[0]), rtol=1e-4, atol=1e-5)
    assert not any("pruner_masks" in name for name in fast.state_dict())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in fast.modules())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.requires_grad for name, p in model.named_parameters() if "original" in name)


def test_a_network_that_cannot_be_traced_is_copied_plain(batch):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 3)

        def forward(self, x):
            out = self.layer(x.flatten(1))
            return out if out.sum() > 0 else -out

    model = Branches()
    fast = fast_copy(model, batch[0])
    assert type(fast) is Branches and fast is not model
    assert torch.equal(fast(batch[0]), model(batch[0]))


def test_a_batchnorm_used_twice_or_behind_two_uses_is_not_folded(batch):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3)
            self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)

        def forward(self, x):
            both = self.norm(self.first(x)) + self.norm(self.second(x)).relu()
            return self.head(both.mean((2, 3)))

    model = trained_statistics(Shared(), batch[0])
    fast = fast_copy(model, batch[0])
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in fast.modules())
    torch.testing.assert_close(fast(batch[0]), model(batch[0]), rtol=1e-4, atol=1e-5)


def test_a_network_that_channels_last_breaks_is_copied_plain():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64)

        def forward(self, x):
            return self.norm(self.conv(x)).view(x.shape[0], -1)[:, :5]

    x = torch.rand(2, 64, 4, 4)
    model = trained_statistics(Views(), x)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        model.to(memory_format=torch.channels_last)(x)
    model.to(memory_format=torch.contiguous_format)
    fast = fast_copy(model, x)
    assert type(fast) is Views and torch.equal(fast(x), model(x))
