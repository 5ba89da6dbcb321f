"""Linear and Conv2d layers with a sparse (CSR) weight, for inference on a CPU."""

from __future__ import annotations

import warnings
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# A convolution unfolds as many examples at once as fit into this number of bytes. Unfolded inputs
# that stay in the cache are multiplied up to 1.7 times as fast.
_CACHE = 2 * 2**20


class SparseLayer(nn.Module):
    """Base class of layers whose weight is a CSR (compressed sparse row) matrix.

    The parts of the CSR matrix are stored as dense buffers, because safetensors cannot store a CSR
    tensor. The indices are int32, because Intel's MKL uses these without a conversion.

    Args:
        csr: the weight, shape [rows, columns], ``layout=torch.sparse_csr``, float32 or float64.
        bias: the bias, shape [rows]; None for a layer without bias.
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
        """The weight, shape [rows, columns], ``layout=torch.sparse_csr``.

        It shares the memory of the buffers.
        """
        return torch.sparse_csr_tensor(
            self.crow_indices, self.col_indices, self.values, self.shape, check_invariants=False
        )

    def product(self, columns: Tensor) -> Tensor:
        """Return W c + b for every column c of ``columns``, shape [rows of W, N].

        Args:
            columns: the inputs, shape [columns of W, N].

        Raises:
            ValueError: in training mode, because the layer cannot be trained.
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
        """Return a dense layer that computes the same, frozen and in evaluation mode."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Return the shape of the weight and its number of stored values, for ``repr``."""
        return f"{self.shape[0]} x {self.shape[1]}, {len(self.values)} values"


class SparseLinear(SparseLayer):
    """A Linear layer y = x W^T + b with W in CSR.

    Shapes:
        x: [..., in_features], y: [..., out_features].
    """

    @classmethod
    def of(cls, layer: nn.Linear, csr: Tensor | None = None) -> SparseLinear:
        """Return a CSR layer that replaces a dense layer.

        Args:
            layer: the dense layer, whose bias is copied.
            csr: the weight, shape [out_features, in_features], ``layout=torch.sparse_csr``; None
                converts the weight of ``layer``.
        """
        return cls(_csr(layer.weight) if csr is None else csr, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return y = x W^T + b, contiguous like the output of a dense layer.

        Args:
            x: shape [..., in_features].

        Returns:
            Tensor: shape [..., out_features].
        """
        found = self.product(x.reshape(-1, self.shape[1]).t())
        return found.t().contiguous().view(*x.shape[:-1], self.shape[0])

    def dense_layer(self) -> nn.Linear:
        """Return a dense layer that computes the same, frozen and in evaluation mode."""
        layer = nn.Linear(self.shape[1], self.shape[0], bias=self.bias is not None)
        return cast(nn.Linear, filled(layer, self.csr.to_dense(), self.bias))


class SparseConv2d(SparseLayer):
    """A convolution as one product of a CSR weight W with the unfolded input.

    W has shape [out, in * kh * kw], with kernels of kh x kw; for a grouped convolution it is
    block-diagonal. The unfolded input has kh * kw times as many entries as the feature map, so the
    product is faster than a dense convolution on small feature maps only.

    Args:
        csr: the weight W, ``layout=torch.sparse_csr``.
        layer: the dense convolution, from which stride, padding, dilation, groups and bias are
            taken.
    """

    def __init__(self, csr: Tensor, layer: nn.Conv2d) -> None:
        super().__init__(csr, layer.bias)
        self.in_channels, self.groups = layer.in_channels, layer.groups
        self.kernel_size = cast(tuple[int, int], layer.kernel_size)
        self.stride = cast(tuple[int, int], layer.stride)
        self.dilation = cast(tuple[int, int], layer.dilation)
        self.padding = cast(str | tuple[int, int], layer.padding)
        self.padding_mode = layer.padding_mode
        # Padding left, right, top and bottom in pixels, also for padding="same".
        self.pads = list(layer._reversed_padding_repeated_twice)

    @classmethod
    def of(cls, layer: nn.Conv2d, csr: Tensor | None = None) -> SparseConv2d:
        """Return a CSR layer that replaces a dense convolution.

        Args:
            layer: the dense convolution, from which stride, padding, dilation, groups and bias are
                taken.
            csr: the weight, shape [out, in * kh * kw], ``layout=torch.sparse_csr``; None converts
                the weight of ``layer``.
        """
        return cls(_csr(layer.weight, layer.groups) if csr is None else csr, layer)

    def output_size(self, x: Tensor) -> tuple[int, int]:
        """Return height and width of the output for an input of shape [..., H, W]."""
        padded = (x.shape[-2] + sum(self.pads[2:]), x.shape[-1] + sum(self.pads[:2]))
        each = zip(padded, self.kernel_size, self.stride, self.dilation, strict=True)
        height, width = [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in each]
        return height, width

    def unfolded_bytes(self, x: Tensor) -> int:
        """Return the bytes that one unfolded example takes, for inputs of shape [..., C, H, W]."""
        height, width = self.output_size(x)
        return self.shape[1] * height * width * x.element_size()

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the convolution, contiguous.

        Args:
            x: shape [B, in_channels, H, W] or [in_channels, H, W].

        Returns:
            Tensor: shape [B, out_channels, H', W'] or [out_channels, H', W'].
        """
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
        # One copy is made, in the layout of the product; F.unfold and a transpose would make two.
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
        """Return a dense layer that computes the same, frozen and in evaluation mode."""
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
        return cast(nn.Conv2d, filled(layer, weight, self.bias))


def _csr(weight: Tensor, groups: int = 1) -> Tensor:
    """Return a dense weight as a CSR matrix that stores its non-zeros only.

    Args:
        weight: shape [out, ...]; the other dimensions are flattened.
        groups: ``groups`` of a convolution; each group gets columns of its own, so that the matrix
            is block-diagonal.

    Returns:
        Tensor: shape [out, groups * weight[0].numel()], ``layout=torch.sparse_csr``.
    """
    rows = weight.detach().flatten(1)
    row, column = rows.nonzero().unbind(1)
    group = row // (len(rows) // groups)
    shape = (len(rows), rows.shape[1] * groups)
    places = torch.stack([row, column + group * rows.shape[1]])
    values = rows[row, column]
    with warnings.catch_warnings():
        # torch gives this warning once per process.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        return torch.sparse_coo_tensor(places, values, shape, check_invariants=True).to_sparse_csr()


def filled(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Set weight and bias of a layer in place, and return it, frozen and in evaluation mode.

    Args:
        layer: a Linear or Conv2d layer.
        weight: the weight.
        bias: the bias, which is copied; None for a layer without bias.
    """
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return layer.eval()
