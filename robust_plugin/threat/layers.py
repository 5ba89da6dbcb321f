"""Normalisation as a layer, so that a threat model speaks of pixels.

A radius is in the units of the inputs that a network gets. Where the data loader normalises, a ball
of 8/255 is another one, eps / std in each channel, and [0, 1] no longer bounds the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robust_plugin.threat.model import ThreatModel


class Normalize(nn.Module):
    """(x - mean) / std by channel, x of shape [N, C, H, W] in [0, 1]: the first layer of a network.

    Args:
        mean: one number a channel, in pixel units; a sequence, an array or a tensor, of shape [C]
            or [1, C, 1, 1].
        std: one positive number a channel, in pixel units; likewise.

    Raises:
        TypeError: a single number, or no numbers.
        ValueError: different lengths, numbers that are not finite, or a std that is not positive.

    >>> from robust_plugin import IBP, ThreatModel
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 10))
    >>> model = nn.Sequential(Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)), network)
    >>> x = torch.rand(2, 3, 4, 4)
    >>> IBP(ThreatModel("Linf", eps="8/255")).margins(model, x, torch.tensor([0, 1])).shape
    torch.Size([2, 10])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        super().__init__()
        numbers = [_channels(name, value) for name, value in (("mean", mean), ("std", std))]
        if len(numbers[0]) != len(numbers[1]) or not len(numbers[0]):
            raise ValueError(f"mean={mean} and std={std}: one number a channel in each")
        if not bool((numbers[1] > 0).all()):
            raise ValueError(f"std={std}: every channel needs a positive one")
        for name, each in zip(("mean", "std"), numbers, strict=True):
            # Made anew, so that it lies where torch puts new tensors, as the layers' weights do.
            self.register_buffer(name, torch.tensor(each.tolist()).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised input, same shape."""
        return (x - self.mean) / self.std


def _channels(name: str, value: Sequence[float] | Tensor) -> Tensor:
    """Return one number a channel, shape [C], in torch's default dtype, whatever held them."""
    try:
        # A float64 array would make the network's inputs float64.
        given = value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
        found = given.detach().to("cpu", torch.get_default_dtype())
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}={value!r}: one number a channel, as (0.5, 0.5, 0.5)") from error
    if found.dim() == 0:
        raise TypeError(f"{name}={value}: one number a channel, as (0.5, 0.5, 0.5)")
    if found.numel() != max(found.shape):
        raise ValueError(f"{name} has shape {tuple(found.shape)}; legal: [C] or [1, C, 1, 1]")
    if not bool(found.isfinite().all()):
        raise ValueError(f"{name}={value}: every channel needs a finite number")
    return found.flatten()


# A radius is worth attacking if it is this many times the rounding of the values that it moves.
_ROUNDINGS = 10


class UnitBox(nn.Module):
    """A network for inputs in [0, 1], which attack libraries take for granted.

    Args:
        model: a network for inputs in [low, high].
        threat: its threat model; where its box is very wide or has no bounds, a smaller one is
            scaled to [0, 1] in which the attack can do the same.
        x: all inputs that are attacked, shape [B, ...].
        reach: how far the attack may look beyond the values of ``x``; by default eps.

    Attributes:
        threat: the same ball in the unit box: eps / (high - low).

    Raises:
        ValueError: if eps is so small beside the spread of the values that it would be lost to
            rounding.
    """

    def __init__(
        self, model: nn.Module, threat: ThreatModel, x: Tensor, *, reach: float | None = None
    ) -> None:
        super().__init__()
        given = threat
        threat = threat.narrowed(x, reach=threat.eps if reach is None else reach)
        self.model, self.low, self.width = model, threat.low, threat.high - threat.low
        # Half precision has a finding of its own.
        dtype = x.dtype if x.dtype == torch.float64 else torch.float32
        scaled = (self.low, self.width) != (0, 1)
        if scaled and 0 < threat.eps < _ROUNDINGS * torch.finfo(dtype).eps * self.width:
            raise ValueError(
                f"the threat model is {given}, and the inputs span {self.width:g}: beside that, "
                f"{dtype} rounds a radius of {given.eps:g} away. Scale the features alike "
                "(each to mean 0 and standard deviation 1, say), or give model.double() and "
                "x.double()."
            )
        self.threat = threat.in_unit_box

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's logits."""
        logits: Tensor = self.model(self.grown(x))
        return logits

    def shrunk(self, x: Tensor) -> Tensor:
        """Scale inputs of the network to [0, 1]."""
        return x if (self.low, self.width) == (0, 1) else (x - self.low) / self.width

    def grown(self, x: Tensor) -> Tensor:
        """Scale inputs in [0, 1] to those of the network."""
        return x if (self.low, self.width) == (0, 1) else self.low + self.width * x
