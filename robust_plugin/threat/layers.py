"""Layers that change the units of inputs, so that eps is in pixel units or inputs are in [0, 1].

A radius is in the units of the inputs that a network gets. If the data loader normalises images,
a ball of 8/255 in pixels becomes a ball of eps / std in each channel, and [0, 1] no longer bounds
the inputs. ``Normalize`` moves the normalisation into the network. ``UnitBox`` scales the inputs of
a network to [0, 1] for attacks that expect this range.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.threat.model import ThreatModel


class Normalize(nn.Module):
    """First layer of a network that normalises images by channel: (x - mean) / std.

    The inputs x have shape [N, C, H, W] and values in [0, 1].

    Args:
        mean: mean of each channel in pixel units: a sequence, an array or a tensor of shape [C] or
            [1, C, 1, 1].
        std: standard deviation of each channel in pixel units, positive: a sequence, an array or a
            tensor of shape [C] or [1, C, 1, 1].

    Raises:
        TypeError: if ``mean`` or ``std`` is a single number or does not hold numbers.
        ValueError: if the two have different lengths, a value is not finite, or a value of ``std``
            is not positive.

    >>> from robust_plugin import IBP, ThreatModel
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 10))
    >>> model = nn.Sequential(Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)), network)
    >>> x = torch.rand(2, 3, 4, 4)
    >>> IBP(ThreatModel("Linf", eps="8/255")).margins(model, x, torch.tensor([0, 1])).shape
    torch.Size([2, 10])
    """

    mean: Tensor
    std: Tensor

    @explain_wrong_calls
    def __init__(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        super().__init__()
        numbers = [_channels(name, value) for name, value in (("mean", mean), ("std", std))]
        if len(numbers[0]) != len(numbers[1]) or not len(numbers[0]):
            raise ValueError(f"mean={mean} and std={std}: give one number per channel in each")
        if not bool((numbers[1] > 0).all()):
            raise ValueError(f"std={std}: every channel needs a positive number")
        for name, each in zip(("mean", "std"), numbers, strict=True):
            # torch.tensor puts the buffer on the default device, as torch does with new weights.
            self.register_buffer(name, torch.tensor(each.tolist()).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised inputs, same shape as ``x``."""
        return (x - self.mean) / self.std


def _channels(name: str, value: Sequence[float] | Tensor) -> Tensor:
    """Check a mean or a standard deviation per channel, and return it as a tensor of shape [C].

    The tensor has torch's default dtype and is on the CPU.

    Args:
        name: "mean" or "std", for the error message.
        value: the values, as ``Normalize`` gets them.

    Raises:
        TypeError: if ``value`` is a single number or does not hold numbers.
        ValueError: for another shape than [C] or [1, C, 1, 1], or a value that is not finite.
    """
    try:
        # A float64 array would make the network's inputs float64.
        given = value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
        found = given.detach().to("cpu", torch.get_default_dtype())
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}={value!r}: one number per channel, as (0.5, 0.5, 0.5)") from error
    if found.dim() == 0:
        raise TypeError(f"{name}={value}: one number per channel, as (0.5, 0.5, 0.5)")
    if found.numel() != max(found.shape):
        raise ValueError(f"{name} has shape {tuple(found.shape)}; legal: [C] or [1, C, 1, 1]")
    if not bool(found.isfinite().all()):
        raise ValueError(f"{name}={value}: every channel needs a finite number")
    return found.flatten()


# UnitBox refuses a radius below this many rounding errors of the inputs: the scaling would lose it.
_ROUNDINGS = 10


class UnitBox(nn.Module):
    """Wrapper that makes a network take inputs in [0, 1], the range that attack libraries expect.

    Args:
        model: network for inputs in [low, high].
        threat: threat model of ``model``, with the box [low, high]. If that box is very wide or has
            no bounds, the wrapper uses a smaller box, scaled to [0, 1]; this smaller box still
            holds every input that the attack may reach.
        x: all inputs to attack, shape [B, ...].
        reach: how far the attack may search below the smallest and above the largest value of
            ``x``, in input units; None means eps.

    Attributes:
        threat: the threat model for inputs in [0, 1]; its radius is eps divided by the width of the
            box that is scaled.

    Raises:
        ValueError: if eps is so small compared with the width of the box that is scaled that
            rounding would lose it.
    """

    def __init__(
        self, model: nn.Module, threat: ThreatModel, x: Tensor, *, reach: float | None = None
    ) -> None:
        super().__init__()
        given = threat
        threat = threat.narrowed(x, reach=threat.eps if reach is None else reach)
        self.model, self.low, self.width = model, threat.low, threat.high - threat.low
        # Half precision is judged as float32 here: ``evaluate`` reports it as a finding of its own.
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
        """Return the network's logits for inputs in [0, 1]."""
        logits: Tensor = self.model(self.grown(x))
        return logits

    def shrunk(self, x: Tensor) -> Tensor:
        """Return inputs ``x`` of the network, scaled from its range [low, high] to [0, 1]."""
        return x if (self.low, self.width) == (0, 1) else (x - self.low) / self.width

    def grown(self, x: Tensor) -> Tensor:
        """Return inputs ``x`` scaled from [0, 1] to [low, high], the range of the network."""
        return x if (self.low, self.width) == (0, 1) else self.low + self.width * x
