"""The pruner on networks it was not written for, as timm and torchvision build them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
import torchvision
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.vgg import VGG as TimmVGG
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from robust_plugin import (
    HarpPruner,
    HydraPruner,
    MagnitudePruner,
    ThreatModel,
    pgd,
    sparsity,
)

CLASSES = 10
THREAT = ThreatModel("Linf", eps="8/255")

# The libraries' own classes, at sizes that train in a second on one core.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "torchvision-resnet18": partial(torchvision.models.resnet18, num_classes=CLASSES),
    # wide_resnet50_2 is this with more blocks; resnext50_32x4d likewise (grouped convolutions).
    "torchvision-wide-resnet": partial(
        ResNet, Bottleneck, [1, 1, 1, 1], num_classes=CLASSES, width_per_group=128
    ),
    "torchvision-resnext": partial(
        ResNet, Bottleneck, [1, 1, 1, 1], num_classes=CLASSES, groups=32, width_per_group=4
    ),
    "timm-vgg-bn": partial(
        TimmVGG,
        [64, "M", 128, "M", 256, "M", 256, "M", 256, "M"],
        num_classes=CLASSES,
        norm_layer=nn.BatchNorm2d,
        mlp_ratio=0.05,
    ),
    "torchvision-densenet": partial(DenseNet, 12, (2, 2, 2, 2), 24, num_classes=CLASSES),
    "torchvision-mobilenet-v2": partial(torchvision.models.mobilenet_v2, num_classes=CLASSES),
    "torchvision-mobilenet-v3": partial(torchvision.models.mobilenet_v3_small, num_classes=CLASSES),
    "timm-convnext": partial(
        timm.create_model, "convnext_atto", pretrained=False, num_classes=CLASSES, ls_init_value=0.5
    ),
    "torchvision-vit": partial(VisionTransformer, 32, 8, 2, 4, 64, 128, num_classes=CLASSES),
    "timm-vit": partial(
        TimmViT,
        img_size=32,
        patch_size=8,
        embed_dim=64,
        depth=2,
        num_heads=4,
        num_classes=CLASSES,
    ),
    "torchvision-swin": partial(
        SwinTransformer, [4, 4], 24, [1, 1], [2, 4], [4, 4], num_classes=CLASSES
    ),
    "timm-swin": partial(
        TimmSwin,
        img_size=32,
        patch_size=4,
        embed_dim=24,
        depths=(1, 2),
        num_heads=(2, 4),
        window_size=4,
        num_classes=CLASSES,
    ),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]()
    # Some heads start at zero: every logit would be equal, and so would any two networks'.
    for parameter in model.parameters():
        if parameter.dim() >= 2 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    # The statistics of the last batch: with a fresh network's own, evaluation mode shrinks every
    # input to the same logits, and any two networks look alike.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    return model


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(4, 3, 32, 32, generator=generator), torch.arange(4)


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(x)


def robust_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x, y = batch()
    model.train()
    loss = F.cross_entropy(model(pgd(THREAT, steps=2)(model, x, y)), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def prunable_sizes(model: nn.Module) -> dict[str, int]:
    """By the modules' types alone, without asking the library."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            found[f"{name}.weight"] = module.weight.numel()
        if isinstance(module, nn.MultiheadAttention):
            found[f"{name}.in_proj_weight"] = module.in_proj_weight.numel()
    return found


def exact_count(sizes: dict[str, int], density: float) -> int:
    return sum(max(1, n - int((1 - density) * n)) for n in sizes.values())


@pytest.mark.parametrize("name", MODELS)
def test_a_pruner_drops_into_a_model_of_another_library(name: str) -> None:
    x, _ = batch()
    model, untouched = build(name), build(name)
    sizes = prunable_sizes(untouched)
    before, dense_logits = model.state_dict(keep_vars=True), logits_of(untouched, x)
    total = exact_count(sizes, 0.1)

    pruner = HarpPruner(model, density=0.1)
    assert {group.name: group.size for group in pruner.groups} == sizes

    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.05)
    pruner.follow(optimizer, epochs=1, steps_per_epoch=1)
    scores = {n: p.detach().clone() for n, p in model.named_parameters() if "scores" in n}
    robust_step(model, optimizer)
    moved = [n for n, p in model.named_parameters() if n in scores and not p.equal(scores[n])]
    assert len(moved) == len(sizes)
    assert pruner.kept == sum(int(mask.mask.sum()) for mask in pruner.masks) == total

    masks = [mask.mask.clone() for mask in pruner.masks]
    optimizer = torch.optim.SGD(pruner.set_phase("finetune"), lr=0.01)
    robust_step(model, optimizer)
    assert all(mask.mask.equal(old) for mask, old in zip(pruner.masks, masks, strict=True))
    # The very Parameter objects that the model had before, so optimizers built then still hold.
    under = [p for p in model.parameters() if any(p is old for old in before.values())]
    assert len(under) == sum(isinstance(v, nn.Parameter) for v in before.values())

    masked_logits = logits_of(model, x)
    assert masked_logits.isfinite().all()
    # Not by chance the same: the logits tell the inputs apart, and the masks change them.
    assert masked_logits.std(0).max() > 1e-2
    assert (masked_logits - dense_logits).abs().max() > 1e-2
    pruner.finalize()
    # The same tensors w * m reach the same kernels: equal to the bit.
    assert torch.equal(logits_of(model, x), masked_logits)
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert [type(m) for m in model.modules()] == [type(m) for m in untouched.modules()]

    state = model.state_dict()
    assert list(state) == list(untouched.state_dict())
    assert sum(int(state[weight].count_nonzero()) for weight in sizes) == total
    untouched.load_state_dict(state, strict=True)
    assert torch.equal(logits_of(untouched, x), masked_logits)


@pytest.mark.parametrize("name", MODELS)
def test_the_sparsity_table_shows_the_share_of_all_weights_and_what_is_not_covered(
    name: str,
) -> None:
    model = build(name)
    sizes = prunable_sizes(model)
    every = sum(p.numel() for p in model.parameters())
    others = {n: p.numel() for n, p in model.named_parameters() if p.dim() >= 2 and n not in sizes}
    HydraPruner(model, density=0.1)
    found, kept = sparsity(model), exact_count(sizes, 0.1)
    assert (found.size, found.parameters, found.kept) == (sum(sizes.values()), every, kept)
    assert dict(found.uncovered) == others
    table = str(found)
    share_of_all = (kept + every - found.size) / every
    assert f"{kept / found.size:.2%} of the prunable, {share_of_all:.2%} of all" in table
    assert f"{found.size / every:.1%} of {every:,} parameters" in table
    for uncovered, size in others.items():
        assert f"{uncovered} ({size:,})" in table
    assert ("not covered" in table) == bool(others)


def test_the_uncovered_matrices_of_transformers_are_named() -> None:
    tables = {
        "torchvision-vit": {"class_token", "encoder.pos_embedding"},
        "timm-vit": {"cls_token", "pos_embed"},
        "torchvision-swin": {
            f"features.{stage}.0.attn.relative_position_bias_table" for stage in (1, 3)
        },
    }
    for name, expected in tables.items():
        assert {matrix for matrix, _ in sparsity(build(name)).uncovered} == expected


@pytest.mark.parametrize("name", MODELS)
def test_multiply_adds_are_counted_on_any_model(name: str) -> None:
    x, _ = batch()
    model = build(name)
    dense = sparsity(model, x[:1])
    assert all(layer.multiply_adds >= 1 for layer in dense.layers)
    HydraPruner(model, density=0.1)
    masked = sparsity(model, x[:1])
    assert [(a.name, a.multiply_adds) for a in masked.layers] == [
        (b.name, b.multiply_adds) for b in dense.layers
    ]
    assert re.search(r"of all, \d+\.\d\d% of their multiply-adds", str(masked))


def test_a_weight_counts_where_its_layer_is_bypassed() -> None:
    # torchvision's Swin hands qkv.weight to a function; proj, its neighbour, sees as many tokens.
    x, _ = batch()
    macs = {
        layer.name: layer.multiply_adds for layer in sparsity(build("torchvision-swin"), x).layers
    }
    for stage, tokens in ((1, 64), (3, 16)):
        assert macs[f"features.{stage}.0.attn.qkv.weight"] == tokens
        assert macs[f"features.{stage}.0.attn.proj.weight"] == tokens


def test_attention_is_pruned_in_the_projection_that_holds_most_of_its_weights() -> None:
    model = build("torchvision-vit")
    pruner = HydraPruner(model, density=0.1)
    attention = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    assert len(attention) == 2
    for layer in attention:
        assert int(layer.in_proj_weight.count_nonzero()) == 12_288 - int(0.9 * 12_288)
        assert int(layer.out_proj.weight.count_nonzero()) == 4_096 - int(0.9 * 4_096)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(optimizer)
    name = "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"
    scores = next(
        mask.scores
        for group, mask in zip(pruner.groups, pruner.masks, strict=True)
        if group.name == name
    )
    before = scores.detach().clone()
    robust_step(model, optimizer)
    # Queries, keys and values all learn, pruned entries included.
    for part, old in zip(scores.detach().chunk(3), before.chunk(3), strict=True):
        assert (part != old).float().mean() > 0.9


def test_attention_with_separate_projections_is_pruned() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 2, kdim=8, vdim=12, batch_first=True)
    pruner = MagnitudePruner(layer, density=0.25)
    assert {group.name: group.size for group in pruner.groups} == {
        "q_proj_weight": 256,
        "k_proj_weight": 128,
        "v_proj_weight": 192,
        "out_proj.weight": 256,
    }
    q, k, v = torch.rand(2, 3, 16), torch.rand(2, 5, 8), torch.rand(2, 5, 12)
    layer.eval()
    with torch.no_grad():
        masked = layer(q, k, v)[0]
        pruner.finalize()
        # torch multiplies a transposed query by a weight that requires a gradient in another
        # order; under no_grad the product w * m requires none.
        layer.requires_grad_(False)
        assert torch.equal(layer(q, k, v)[0], masked)
    assert int(layer.k_proj_weight.count_nonzero()) == 32


def operators(model: nn.Module, x: Tensor) -> tuple[Tensor, set[str]]:
    with torch.no_grad(), torch.profiler.profile(acc_events=True) as profile:
        out = model(x)
    return out, {event.key for event in profile.key_averages()}


def test_the_fused_transformer_kernel_sees_the_masked_weights() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.rand(2, 5, 32)
    dense, _ = operators(model, x)
    pruner = MagnitudePruner(model, density=0.1)
    masked, kernels = operators(model, x)
    assert "aten::_transformer_encoder_layer_fwd" in kernels
    pruner.finalize()
    plain, kernels = operators(model, x)
    assert "aten::_transformer_encoder_layer_fwd" in kernels
    assert torch.equal(plain, masked)
    assert not torch.allclose(masked, dense, atol=1e-2)
    # The slow path, which a gradient to the input takes, computes with the same weights.
    slow = model(x.clone().requires_grad_(True))
    torch.testing.assert_close(slow.detach(), plain, rtol=1e-5, atol=1e-5)
