"""A guard for torch.fx traces: an error instead of a trace that loses a backward pass."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx


class OwnBackward(ValueError):
    """Raised when a network calls a ``torch.autograd.Function``, whose backward pass would be lost.

    A torch.fx trace holds only the operations of the forward pass.
    """


@contextmanager
def refusing_own_backward() -> Iterator[None]:
    """Raise OwnBackward if a torch.fx trace inside reaches a ``torch.autograd.Function``.

    Called on proxies, ``Function.apply`` runs the forward method, so the trace holds the
    operations of that method, and autograd differentiates these. A straight-through estimator
    has a different backward pass on purpose, which the trace would lose.
    """
    function: Any = torch.autograd.Function
    apply = inspect.getattr_static(function, "apply")

    def checked(cls: type, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(each, fx.Proxy) for each in (*args, *kwargs.values())):
            raise OwnBackward(
                f"{cls.__name__} is a torch.autograd.Function with a backward pass of its own, "
                "which a trace of the network would lose"
            )
        return apply.__get__(None, cls)(*args, **kwargs)

    function.apply = classmethod(checked)
    try:
        yield
    finally:
        function.apply = apply
