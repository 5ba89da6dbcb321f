"""The device that a command computes on, by its name."""

from __future__ import annotations

import torch


def device_of(name: str) -> torch.device:
    """Return the device of a name; ``auto`` takes cuda where there is one.

    Raises:
        ValueError: if this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = ["auto", "cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    here += ["mps"] * torch.backends.mps.is_available()
    try:
        device = torch.empty(0, device=name).device
    # torch raises many kinds, of which some speak of its own operators and backends.
    except Exception as error:
        raise ValueError(
            f"device is {name!r}, which this machine does not have; legal here: {', '.join(here)}."
        ) from error
    if device.type == "meta":
        raise ValueError(
            f"device is {name!r}, whose tensors hold no values; legal here: {', '.join(here)}."
        )
    return device
