"""An error where a torch.fx trace of a network would lose a custom backward pass."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx


class OwnBackward(ValueError):
    """A ``torch.autograd.Function`` is traced, and its backward pass would be lost.

    A torch.fx trace holds only the operations of the forward pass.
    """


@contextmanager
def refusing_own_backward() -> Iterator[None]:
    """Within the context, a torch.fx trace raises OwnBackward for a ``torch.autograd.Function``.

    Without the error, the trace would hold the operations of the function's forward method, and
    autograd would differentiate these. The function's own backward pass, which differs on purpose
    in a straight-through estimator, would be lost.
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
