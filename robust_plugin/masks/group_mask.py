"""The mask of one group, with its scores and its learned density.

A *group* is what shares one score tensor and one density (its rate): a weight tensor, or a set of
layers whose input channels are removed together.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.masks.mask_state import facts_of, mask_of, packed
from robust_plugin.masks.select import (
    Pattern,
    StraightThrough,
    most_kept,
    nm_mask,
    topk_mask,
)


class GroupMask(nn.Module):
    """Scores, learned density and mask of the weights or channels of one group.

    The mask is chosen after each optimizer step. A forward pass only reads it, so a training step
    with ten attack steps computes top-k once. If the scores were written since (by SAM, say), the
    next forward pass chooses it anew.

    The mask, the number of its ones and the progress of the prune phase are neither parameters nor
    buffers, so that averages of networks (EMA) and DDP leave them alone. They are in the state_dict
    as one tensor of bytes.

    A copy of the network has the masks of the moment when it was made. If its scores are written
    later, it is an average, and takes the present masks of the network that it was copied from.

    Args:
        scores: initial scores, one per weight or per channel.
        kept: number of weights or channels to keep.
        learned: whether the scores are learned; they are a Parameter then, else a buffer.
        k_min: least density, for a learned density.
        rate: initial logit r of the density; None if the density is not learned.
        pattern: n:m pattern of the mask; None for an unstructured mask.

    Attributes:
        scores: one score per weight or per channel, float32 for every dtype of the model.
        rate: logit r of the density k = k_min + (1 - k_min) sigmoid(r); None if the density is not
            learned.
        kept: number of ones in the mask.
        mask: the mask, bool, same shape as the scores.
        learning: True in the prune phase: gradients pass to the scores and the logit.
        fixed: True once pruned weights cannot come back: the mask is not learned, or not any more.
        waits: name of the first phase of the pruner, while that has not begun; "" if it has, or if
            fine-tuning is the first.
        unfollowed: True while scores or density are to be learned but ``Pruner.follow`` has not
            been called, so that no optimizer step changes the mask.
        progress: what the pruner needs to continue, as plain JSON data (on its first mask only).
        budget: the largest cost that the pruner may keep, and its density; compared when a state
            is loaded.
        room: bytes that are reserved for these in the state, so that its shape does not change.
        was_dense: whether the last state that was loaded had no mask for this group.
    """

    def __init__(
        self,
        scores: Tensor,
        kept: int,
        *,
        learned: bool = False,
        k_min: float = 0.0,
        rate: float | None = None,
        pattern: Pattern | None = None,
    ) -> None:
        super().__init__()
        own = scores.detach().float().clone()
        self.scores: Tensor
        if learned:
            self.scores = nn.Parameter(own, requires_grad=False)
        else:
            self.register_buffer("scores", own)
        self.rate: nn.Parameter | None = None
        if rate is not None:
            self.rate = nn.Parameter(torch.tensor(rate, device=own.device), requires_grad=False)
        self.k_min = k_min
        self.pattern = pattern
        self.kept = kept
        self.mask = torch.empty_like(own, dtype=torch.bool)
        self.learning = self.unfollowed = self.was_dense = False
        self.waits = ""
        self.fixed = True
        self.progress: dict[str, Any] = {}
        self.budget: dict[str, float] = {}
        self.room = 256
        # The version of the scores that the mask was chosen from, or copied or loaded with.
        self._chosen_from = 0
        self._changes = 0  # counts new masks
        # In a copy: the group that it was copied from, and the count there at the last look.
        self._original: weakref.ref[GroupMask] | None = None
        self._seen = 0
        self.choose()

    def choose(self, kept: int | None = None) -> None:
        """Compute the mask anew: the ``kept`` largest ``|scores|``, or the n largest of every m.

        Args:
            kept: number of weights or channels to keep from now on; None keeps as many as before.

        Raises:
            ValueError: if this number does not fit the n:m pattern, or a score is NaN.
        """
        count = self.kept if kept is None else kept
        with torch.no_grad():
            if self.pattern is not None:
                n = self.pattern.kept_of_m(count, self.scores.numel())
                chosen = nm_mask(self.scores, n, self.pattern.m)
            else:
                chosen = topk_mask(self.scores, count)
        self.kept = count
        self.set_mask(chosen)
        self._chosen_from = self.scores._version

    def set_mask(self, mask: Tensor) -> None:
        """Overwrite the mask with a given one of the same shape."""
        with torch.no_grad():
            self.mask.copy_(mask)
        self._changes += 1

    def refresh(self) -> None:
        """Choose the mask anew if the scores were written since; an average takes the original's.

        Only learned masks are chosen anew. A forward pass does this first.
        """
        if torch.compiler.is_compiling() or self._chosen_from == self.scores._version:
            return
        if self._original is None:
            if self.learning:
                self.choose()
            return
        original = self._original()
        if original is not None and original._changes != self._seen:
            self.set_mask(original.mask)
            self.kept, self.waits, self._seen = original.kept, original.waits, original._changes

    def density(self) -> Tensor:
        """Return the density k = k_min + (1 - k_min) sigmoid(r), HARP section 3.2.

        It is a scalar, differentiable with respect to the logit r. If the density is not learned,
        it is the share of ones in the mask.
        """
        if self.rate is None:
            return torch.tensor(self.kept / self.scores.numel(), device=self.scores.device)
        return self.k_min + (1 - self.k_min) * torch.sigmoid(self.rate)

    def forward(self, dtype: torch.dtype) -> Tensor:
        """Return the mask; in the prune phase gradients pass to the scores and the rate logit.

        Args:
            dtype: dtype of the returned mask if gradients pass through it; else the mask is bool.

        Raises:
            ValueError: if scores or rate are to be learned and ``Pruner.follow`` was not called.
        """
        self.refresh()
        if not (self.learning and torch.is_grad_enabled()):
            return self.mask
        if self.unfollowed:
            raise ValueError(
                "the prune phase learns scores but no optimizer is followed, so the mask would "
                "never move; call pruner.follow(optimizer, ...) before the first forward pass."
            )
        through: Tensor = StraightThrough.apply(self.mask, self.scores, self.density(), dtype)
        return through

    def get_extra_state(self) -> Tensor:
        """Return mask, number of ones, budget and progress as bytes, for the state_dict."""
        facts = {"kept": self.kept, "budget": self.budget, "progress": self.progress}
        return packed(facts, self.mask, length=self.room)

    def set_extra_state(self, state: Tensor) -> None:
        """Take mask, number of ones and progress from what ``get_extra_state`` returned.

        Raises:
            ValueError: if the state is damaged, or its mask is not of the pattern.
        """
        facts = facts_of(state)
        mask = mask_of(state, self.mask.shape)
        if self.pattern is not None:
            n = self.pattern.kept_of_m(int(facts["kept"]), mask.numel())
            if most_kept(mask, self.pattern.m) > n:
                raise ValueError(
                    f"a mask that keeps {int(facts['kept'])} of {mask.numel()} weights is not the "
                    f"pattern {self.pattern}; is it the state of a pruner with another pattern?"
                )
        self.set_mask(mask)
        self.kept, self.progress = int(facts["kept"]), facts["progress"]
        self.budget = facts["budget"]
        self._chosen_from = self.scores._version
        self.waits = ""  # the scores may have been learned elsewhere

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # The state of a network without masks loads too, also strictly: the masks stay.
        self.was_dense = not any(
            prefix + own in state_dict for own in ("scores", "rate", "_extra_state")
        )
        if not self.was_dense:
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GroupMask:
        # Scores and rate keep their float32 values through a change of dtype: model.half() must not
        # round them.
        own = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        exact = {name: tensor.detach() for name, tensor in own.items()}
        follows = self._chosen_from == self.scores._version
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in exact.items():
            moved = getattr(self, name)
            if moved.dtype != torch.float32:
                moved.data = before.to(moved.device)
        self.mask = fn(self.mask)
        if follows:
            self._chosen_from = self.scores._version
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes for a copy or a pickle."""
        return {**self.__dict__, "_original": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the attributes of a copy or a pickle."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._chosen_from = self.scores._version

    def __deepcopy__(self, memo: dict[int, Any]) -> GroupMask:
        """Return a copy that knows its original."""
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        made._original = self._original or weakref.ref(self)
        made._seen = -1
        return made
