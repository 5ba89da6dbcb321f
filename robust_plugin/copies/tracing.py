"""Traces of a network by torch.fx that do not lose a backward pass of the network's own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import fx


class OwnBackward(ValueError):
    """A network calls a ``torch.autograd.Function``, whose backward pass a trace would lose."""


@contextmanager
def refusing_own_backward() -> Iterator[None]:
    """Raise OwnBackward where a torch.fx trace reaches a ``torch.autograd.Function``.

    Called on proxies, ``Function.apply`` runs its forward method, so that the trace holds the
    operations in it and autograd differentiates those. A straight-through estimator has another
    backward pass on purpose.
    """
    apply = inspect.getattr_static(torch.autograd.Function, "apply")

    def checked(cls: type, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(each, fx.Proxy) for each in (*args, *kwargs.values())):
            raise OwnBackward(
                f"{cls.__name__} is a torch.autograd.Function with a backward pass of its own, "
                "which a trace of the network would lose"
            )
        return apply.__get__(None, cls)(*args, **kwargs)

    with mock.patch.object(torch.autograd.Function, "apply", classmethod(checked)):
        yield
