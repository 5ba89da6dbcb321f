"""Replacements for names and behaviour that auto-LiRPA needs and newer torch and NumPy lack.

Each replacement is active only inside its context and, where it can be tested, only if the
installed torch or NumPy lacks the original.
"""

from __future__ import annotations

import inspect
import logging
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor


@contextmanager
def importable() -> Iterator[None]:
    """Within the context, auto-LiRPA 0.3 can be imported.

    Importing the library changes warning filters, the root logger and TorchScript's profiling; all
    three are restored at the end of the context.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    executor = torch._C._jit_set_profiling_executor(True)
    mode = torch._C._jit_set_profiling_mode(True)
    try:
        with warnings.catch_warnings(), _moved_names():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.handlers[:], root.level = handlers, level
        torch._C._jit_set_profiling_executor(executor)
        torch._C._jit_set_profiling_mode(mode)


@contextmanager
def _moved_names() -> Iterator[None]:
    """Within the context, supply names that newer NumPy and torch have moved or removed."""
    with ExitStack() as stack:
        if not hasattr(np.lib, "arraysetops"):
            moved = types.ModuleType("numpy.lib.arraysetops")
            moved.isin = np.isin  # type: ignore[attr-defined]
            sys.modules[moved.__name__] = moved
            stack.callback(sys.modules.pop, moved.__name__)
        # Not "from torch.onnx import symbolic_helper": that name is another module at first.
        import torch.onnx.symbolic_helper as symbolic_helper

        # Imported always, since otherwise the operations in a trace would depend on what else was
        # imported.
        try:
            from torch.onnx._internal.torchscript_exporter import (  # noqa: F401
                _globals,
                symbolic_opset11,
                symbolic_opset12,
            )
        except ImportError:  # before torch 2.9
            from torch.onnx import (  # type: ignore[attr-defined,no-redef]
                _globals,
            )
        if not hasattr(symbolic_helper, "_set_opset_version"):

            def set_opset(version: int) -> None:
                _globals.GLOBALS.export_onnx_opset_version = version

            patch = mock.patch.object(symbolic_helper, "_set_opset_version", set_opset, create=True)
            stack.enter_context(patch)
        yield


@contextmanager
def readable_trace() -> Iterator[None]:
    """Within the context, let auto-LiRPA 0.3 read attributes of a trace's nodes as ``node[key]``.

    Warnings are hidden.
    """
    with ExitStack() as stack:
        if not hasattr(torch._C.Node, "__getitem__"):

            def attribute(node: Any, key: str) -> Any:
                return getattr(node, node.kindOf(key))(key)

            setattr(torch._C.Node, "__getitem__", attribute)  # noqa: B010  (mypy has it)
            stack.callback(delattr, torch._C.Node, "__getitem__")
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


@contextmanager
def learning_at_the_ends() -> Iterator[None]:
    """Within the context, ``torch.clamp`` with two bounds has gradient 1 at and beyond its bounds.

    Every slope of alpha-CROWN starts at a bound of clamp. Newer torch gives gradient 0 there, so
    that no slope would ever move. The library itself clips slopes after each step.
    """
    clamp = torch.clamp

    def identity(value: Tensor, *args: Any, **limits: Any) -> Tensor:
        out = clamp(value, *args, **limits)
        if not value.requires_grad or len(args) + len(limits) < 2:
            return out
        return value + (out - value).detach()

    with mock.patch.object(torch, "clamp", identity):
        yield


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Within the context, set torch's default dtype, in which the library makes identity matrices.

    Args:
        dtype: dtype of the network.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def accept_remove_duplicate(module: Any) -> None:
    """Make a class's ``_named_members`` accept ``remove_duplicate``, as newer torch requires.

    Args:
        module: a subclass of nn.Module, such as BoundedModule; it is changed in place.
    """
    members = module._named_members
    if "remove_duplicate" in inspect.signature(members).parameters:
        return

    def named_members(self: Any, get_members: Any, *args: Any, **options: Any) -> Iterator[Any]:
        options.pop("remove_duplicate", None)
        yield from members(self, get_members, *args, **options)

    module._named_members = named_members
