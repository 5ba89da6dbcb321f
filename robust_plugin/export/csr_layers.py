"""Linear and Conv2d layers that multiply by a sparse (CSR) weight: inference on a CPU."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_plugin.copies.copied import copied

# The input of a convolution is unfolded for as many examples at once as take this many bytes: what
# stays in the cache is multiplied up to 1.7 times as fast.
_CACHE = 2 * 2**20
# Where torch keeps the hooks of a module.
_HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks",
    "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_backward_pre_hooks",
    "_backward_hooks", "_is_full_backward_hook",
)  # fmt: skip


class SparseLayer(nn.Module):
    """A weight as a CSR matrix [rows, columns], and a bias.

    Its buffers are plain tensors, so that safetensors can hold them. The indices are int32, which
    MKL multiplies without converting them.

    Args:
        csr: the weight, ``layout=torch.sparse_csr``, float32 or float64.
        bias: shape [rows].
    """

    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, csr: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.shape = (csr.shape[0], csr.shape[1])
        self.register_buffer("crow_indices", csr.crow_indices().int())
        self.register_buffer("col_indices", csr.col_indices().int())
        self.register_buffer("values", csr.values().detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.eval()

    @property
    def csr(self) -> Tensor:
        """The weight, ``layout=torch.sparse_csr``; it shares the buffers' memory."""
        return torch.sparse_csr_tensor(
            self.crow_indices, self.col_indices, self.values, self.shape, check_invariants=False
        )

    def product(self, columns: Tensor) -> Tensor:
        """Return W c + b for every column c of [columns, N], shape [rows, N].

        Raises:
            ValueError: in training mode: nothing here learns.
        """
        if self.training:
            raise ValueError(
                f"{type(self).__name__} is for inference; call model.eval(), and train the dense "
                "network."
            )
        if columns.shape[1] == 1:
            found = torch.mv(self.csr, columns[:, 0])[:, None]
        else:
            found = self.csr @ columns
        return found if self.bias is None else found + self.bias[:, None]

    def dense_layer(self) -> nn.Module:
        """Return the dense layer that computes the same."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Return shape and number of values, for ``repr``."""
        return f"{self.shape[0]} x {self.shape[1]}, {len(self.values)} values"


class SparseLinear(SparseLayer):
    """y = x W^T + b with W in CSR.

    Shapes:
        x: [..., in_features], y: [..., out_features].
    """

    @classmethod
    def of(cls, layer: nn.Linear, csr: Tensor | None = None) -> SparseLinear:
        """Return a layer with the shape and bias of a dense one, and its weight unless given."""
        return cls(_csr(layer.weight) if csr is None else csr, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return y; contiguous, as a dense layer's."""
        found = self.product(x.reshape(-1, self.shape[1]).t())
        return found.t().contiguous().view(*x.shape[:-1], self.shape[0])

    def dense_layer(self) -> nn.Linear:
        """Return the dense layer that computes the same."""
        layer = nn.Linear(self.shape[1], self.shape[0], bias=self.bias is not None)
        return cast(nn.Linear, _filled(layer, self.csr.to_dense(), self.bias))


class SparseConv2d(SparseLayer):
    """A convolution as one product of W in CSR, [out, in * kh * kw], with the unfolded input.

    Groups are blocks of W. The unfolded input has kh * kw times the entries of a map, so that this
    pays on small maps only.

    Args:
        csr: the weight.
        layer: a convolution of the same geometry and bias.
    """

    def __init__(self, csr: Tensor, layer: nn.Conv2d) -> None:
        super().__init__(csr, layer.bias)
        self.in_channels, self.groups = layer.in_channels, layer.groups
        self.kernel_size = cast(tuple[int, int], layer.kernel_size)
        self.stride = cast(tuple[int, int], layer.stride)
        self.dilation = cast(tuple[int, int], layer.dilation)
        self.padding = cast(str | tuple[int, int], layer.padding)
        self.padding_mode = layer.padding_mode
        # left, right, top, bottom; numbers also for "same".
        self.pads = list(layer._reversed_padding_repeated_twice)

    @classmethod
    def of(cls, layer: nn.Conv2d, csr: Tensor | None = None) -> SparseConv2d:
        """Return a layer with the geometry and bias of a dense one, and its weight unless given."""
        return cls(_csr(layer.weight, layer.groups) if csr is None else csr, layer)

    def output_size(self, x: Tensor) -> tuple[int, int]:
        """Return height and width of the output for inputs [..., H, W]."""
        padded = (x.shape[-2] + sum(self.pads[2:]), x.shape[-1] + sum(self.pads[:2]))
        each = zip(padded, self.kernel_size, self.stride, self.dilation, strict=True)
        height, width = [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in each]
        return height, width

    def unfolded_bytes(self, x: Tensor) -> int:
        """Return what one unfolded example takes, of inputs [..., C, H, W]."""
        height, width = self.output_size(x)
        return self.shape[1] * height * width * x.element_size()

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, shape [B, out_channels, H', W'], contiguous."""
        if x.dim() == 3:
            return self._convolved(x[None])[0]
        at_once = max(1, _CACHE // max(1, self.unfolded_bytes(x)))
        if len(x) <= at_once:
            return self._convolved(x)
        return torch.cat([self._convolved(part) for part in torch.split(x, at_once)])

    def _convolved(self, x: Tensor) -> Tensor:
        height, width = self.output_size(x)
        if any(self.pads):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, self.pads, mode)
        batch, channels = x.shape[:2]
        per_sample, per_channel, per_row, per_column = x.stride()
        # One copy into the layout of the product; F.unfold and a transpose would make two.
        windows = x.as_strided(
            (channels, *self.kernel_size, batch, height, width),
            (
                per_channel,
                per_row * self.dilation[0],
                per_column * self.dilation[1],
                per_sample,
                per_row * self.stride[0],
                per_column * self.stride[1],
            ),
        )
        found = self.product(windows.reshape(windows.shape[:3].numel(), -1))
        return found.view(self.shape[0], batch, height, width).transpose(0, 1).contiguous()

    def dense_layer(self) -> nn.Conv2d:
        """Return the dense layer that computes the same."""
        layer = nn.Conv2d(
            self.in_channels,
            self.shape[0],
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=self.bias is not None,
            padding_mode=self.padding_mode,
        )
        blocks = self.csr.to_dense().view(self.groups, -1, self.groups, layer.weight[0].numel())
        weight = torch.cat([blocks[g, :, g] for g in range(self.groups)]).view_as(layer.weight)
        return cast(nn.Conv2d, _filled(layer, weight, self.bias))


def _csr(weight: Tensor, groups: int = 1) -> Tensor:
    """Return a dense weight's non-zeros, row by row, each group in columns of its own."""
    rows = weight.detach().flatten(1)
    row, column = rows.nonzero().unbind(1)
    group = row // (len(rows) // groups)
    shape = (len(rows), rows.shape[1] * groups)
    places = torch.stack([row, column + group * rows.shape[1]])
    values = rows[row, column]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")  # once a process
        return torch.sparse_coo_tensor(places, values, shape, check_invariants=True).to_sparse_csr()


def _filled(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return layer.eval()


def with_layers(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Return a deep copy of a model with some layers replaced, wherever it refers to them.

    What hooks a layer has, its replacement has too: they may change outputs and gradients.
    """
    memo: dict[int, Any] = {id(old): replacement for old, replacement in new.items()}
    found = copied(model, memo)
    for old, replacement in new.items():
        for key in _HOOKS:
            try:
                setattr(replacement, key, copy.deepcopy(getattr(old, key), memo))
            except Exception as error:  # a hook may hold whatever cannot be copied
                raise ValueError(
                    f"a hook of a {type(old).__name__} cannot be copied to the layer in its place "
                    f"({error}); remove it."
                ) from error
    return found


def dense_copy(model: nn.Module) -> nn.Module:
    """Return a copy whose sparse layers, CSR or 2:4, are dense again; it computes the same."""
    new: dict[nn.Module, nn.Module] = {}
    for layer in model.modules():
        if isinstance(layer, SparseLayer):
            new[layer] = layer.dense_layer()
        elif isinstance(layer, nn.Linear) and is_semi_structured(layer):
            dense = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            new[layer] = _filled(dense, layer.weight.to_dense(), layer.bias)
    return with_layers(model, new)


def is_semi_structured(layer: nn.Linear) -> bool:
    """Whether a layer's weight is one of torch's 2:4 tensors."""
    return isinstance(layer.weight.data, torch.sparse.SparseSemiStructuredTensor)
