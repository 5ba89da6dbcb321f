"""What auto-LiRPA misses in today's torch and NumPy, each given only where it is missing."""

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
    """Let release 0.3 be imported, and leave no trace of that.

    Importing either release changes warning filters, the root logger and TorchScript's profiling;
    all three are as before afterwards.
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
    with ExitStack() as stack:
        if not hasattr(np.lib, "arraysetops"):
            moved = types.ModuleType("numpy.lib.arraysetops")
            moved.isin = np.isin  # type: ignore[attr-defined]
            sys.modules[moved.__name__] = moved
            stack.callback(sys.modules.pop, moved.__name__)
        # Written so, because torch.onnx has another module of this name as an attribute at first.
        import torch.onnx.symbolic_helper as symbolic_helper

        # Which operations a trace has would else depend on what else was imported.
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
    """What release 0.3 asks of torch's traces while it reads one, where this torch lacks it."""
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
    """The gradient that clamp had at its bounds, where every slope of alpha-CROWN starts.

    Newer torch gives 0 there, and no slope would ever move. The library clips slopes itself.
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
    """The dtype in which the library makes identities of its own."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def accept_remove_duplicate(module: Any) -> None:
    """Let the library's module list its parameters as torch now asks a module to."""
    members = module._named_members
    if "remove_duplicate" in inspect.signature(members).parameters:
        return

    def named_members(self: Any, of: Any, *args: Any, **options: Any) -> Iterator[Any]:
        options.pop("remove_duplicate", None)
        yield from members(self, of, *args, **options)

    module._named_members = named_members
