"""An exponential moving average of the weights, in place of the weights themselves.

The average is part of the optimizer's state, so the checkpoints of a stage hold it and a continued
run gives the same result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from robust_plugin.masks.attach import write_zeros

_KEY = "average"  # in the optimizer's state of each parameter


class Average:
    """The moving average a <- d a + (1 - d) w of the parameters that an optimizer trains.

    It begins with the weights after the first step. d is the decay, limited to
    (1 + t) / (10 + t) at step t so that the first weights do not stay in it for long.

    Args:
        optimizer: optimizer of the stage; the average follows its steps.
        decay: d, above 0 and below 1.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self._optimizer, self._decay = optimizer, decay
        self._steps = 0
        optimizer.register_step_post_hook(lambda *_: self._update())

    def resume(self, steps: int) -> None:
        """Continue after a number of steps, whose average the optimizer's state already holds."""
        self._steps = steps

    def _update(self) -> None:
        """Move the average by one step."""
        self._steps += 1
        every = [p for group in self._optimizer.param_groups for p in group["params"]]
        # Adam takes a state without its own entries for broken, and makes them at the first
        # gradient of a parameter.
        trained = [p for p in every if p.grad is not None or _KEY in self._optimizer.state[p]]
        states = [self._optimizer.state[p] for p in trained]
        for parameter, state in zip(trained, states, strict=True):
            if _KEY not in state:
                state[_KEY] = parameter.detach().clone()
        if not trained:
            return
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        averages = [state[_KEY] for state in states]
        move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        move(averages, [p.detach() for p in trained], self._steps)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Within the context, the network has the averaged weights.

        Its buffers may be measured anew there: on exit, weights and buffers are as before.
        """
        buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
        weights = self.exchange()
        write_zeros(model)  # an average holds rests of weights that were pruned on the way
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in weights.items():
                    parameter.copy_(value)
                for name, buffer in model.named_buffers():
                    buffer.copy_(buffers[name])

    def exchange(self) -> dict[torch.Tensor, torch.Tensor]:
        """Put the averaged weights into the network; return by parameter what was there before."""
        found: dict[torch.Tensor, torch.Tensor] = {}
        with torch.no_grad():
            for parameter, state in self._optimizer.state.items():
                if _KEY in state:
                    found[parameter] = parameter.detach().clone()
                    parameter.copy_(state[_KEY])
        return found
