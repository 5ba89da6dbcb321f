"""Attacks and certifiers told apart: a digest of their code and of all that they hold.

Two objects of equal content have one digest in every process that runs the same program, and
objects of another class, code, option or state have others. Their ``repr`` does not do: that of a
function ends in an address, and leaves out what its closure holds.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import hashlib
import sys
import types
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from robust_plugin.runtime.journal import Fingerprint

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))
_CALLED = (types.FunctionType, staticmethod, classmethod, property, functools.cached_property)
_SLOTS = (types.GetSetDescriptorType, types.MemberDescriptorType)
# What every network has; weights and buffers are in its fingerprint.
_OF_NETWORKS = frozenset(vars(nn.Module()))


def description(stage: object) -> str:
    """Return a name for readers and a digest, such as ``"IBP(threat=...) 3c0f..."``.

    The digest is of a function's code, defaults, closure and the globals that it reads; of an
    instance's class and state; of the values of tensors and networks. Code of installed packages
    goes by its name. Fields of a dataclass that are not compared (``field(compare=False)``), such
    as caches and callbacks of progress, are left out.

    Raises:
        TypeError: for what holds something whose state cannot be read, such as an open file.
    """
    digest, shown = _Digests().of(stage), repr(stage)
    if " at 0x" in shown or len(shown) > 200:
        shown = _path(stage if isinstance(stage, types.FunctionType | type) else type(stage))
    return f"{shown} {digest}"


class _Digests:
    """Digests of objects, each computed once; an object inside itself goes by its depth."""

    def __init__(self) -> None:
        self.open: dict[int, int] = {}
        # With the objects themselves: an address may be given away again.
        self.done: dict[int, tuple[str, object]] = {}

    def of(self, value: Any) -> str:
        if type(value) in _PLAIN:
            return f"{type(value).__name__} {value!r}"
        if id(value) in self.open:
            return f"the one at depth {self.open[id(value)]}"
        if id(value) not in self.done:
            self.open[id(value)] = len(self.open)
            parts = self._parts(value)
            del self.open[id(value)]
            self.done[id(value)] = hashlib.sha256(repr(parts).encode()).hexdigest()[:16], value
        return self.done[id(value)][0]

    def _all(self, values: Any) -> list[str]:
        return [self.of(each) for each in values]

    def _named(self, values: dict[str, Any]) -> list[tuple[str, str]]:
        return [(name, self.of(each)) for name, each in values.items()]

    def _parts(self, value: Any) -> Any:
        """What an object is, in strings."""
        kind = type(value)
        if isinstance(value, Tensor):
            return "tensor", str(Fingerprint(value))
        if isinstance(value, nn.Module):
            return "network", str(Fingerprint(value)), [self._layer(m) for m in value.modules()]
        if isinstance(value, types.ModuleType):
            return "module", value.__name__
        if kind in (tuple, list):
            return kind.__name__, self._all(value)
        if kind in (set, frozenset):
            return kind.__name__, sorted(self._all(value))
        if kind in (dict, types.MappingProxyType):
            return kind.__name__, self._all(value), self._all(value.values())
        if isinstance(value, types.CodeType):
            names = value.co_names, value.co_varnames, value.co_freevars
            return "code", value.co_code, names, self._all(value.co_consts)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return "method", self._all([value.__func__, value.__self__])
        if isinstance(value, staticmethod | classmethod):
            return kind.__name__, self.of(value.__func__)
        if isinstance(value, property):
            return "property", self._all([value.fget, value.fset, value.fdel])
        if isinstance(value, functools.cached_property):
            return "cached property", self.of(value.func)
        if isinstance(value, type):
            return self._class(value)
        if dataclasses.is_dataclass(value):
            return "dataclass", self.of(kind), self._fields(value)
        return self._instance(value)

    def _function(self, function: types.FunctionType) -> Any:
        cells = [_content(cell) for cell in function.__closure__ or ()]
        held = [function.__code__, function.__defaults__, function.__kwdefaults__, cells]
        read: dict[str, Any] = {}
        if not _installed(function.__module__):
            there = function.__globals__
            read = {n: there[n] for n in sorted(set(_names(function.__code__))) if n in there}
        return "function", _path(function), self._all(held), self._named(read)

    def _class(self, kind: type) -> Any:
        if _installed(kind.__module__):
            return "class", _path(kind)
        own = {name: each for name, each in vars(kind).items() if _decides(name, each)}
        return "class", _path(kind), self._all(kind.__bases__), self._named(own)

    def _layer(self, layer: nn.Module) -> Any:
        own = {key: each for key, each in vars(layer).items() if key not in _OF_NETWORKS}
        return self.of(type(layer)), layer.training, self._named(own)

    def _fields(self, value: Any) -> Any:
        fields = dataclasses.fields(value)
        held = {f.name: getattr(value, f.name) for f in fields} | getattr(value, "__dict__", {})
        for each in (f for f in fields if not f.compare):
            del held[each.name]
        return self._named(held)

    def _instance(self, value: Any) -> Any:
        """What pickle would save, which is all of an object's state or an error."""
        if isinstance(value, types.BuiltinFunctionType):
            owner = value.__self__
            return "builtin", _path(value), isinstance(owner, types.ModuleType) or self.of(owner)
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:  # in as many ways as there are objects
            raise TypeError(
                f"a journal cannot tell {value!r} from others of its kind, as its state cannot be "
                "read; give the stage as a frozen dataclass whose fields are its settings, or no "
                "journal."
            ) from error
        if isinstance(reduced, str):  # it goes by its name
            return "name", _path(value), reduced, self.of(getattr(value, "__wrapped__", None))
        return "instance", [
            self._all(each) if isinstance(each, Iterator) else self.of(each) for each in reduced
        ]


def _path(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"


def _installed(module: str | None) -> bool:
    """Whether a module is Python's or an installed package's, this one's included."""
    name = module or ""
    if name.partition(".")[0] in (*sys.stdlib_module_names, __name__.partition(".")[0]):
        return True
    file = str(getattr(sys.modules.get(name), "__file__", ""))
    return "site-packages" in file or "dist-packages" in file


def _decides(name: str, value: object) -> bool:
    """Whether a class's attribute says what its instances do: methods and constants."""
    if name.startswith(("__annotat", "_abc_")) or isinstance(value, _SLOTS):
        return False
    return isinstance(value, _CALLED) or not (name.startswith("__") and name.endswith("__"))


def _names(code: types.CodeType) -> Iterator[str]:
    """Names that code, and the functions made in it, look up in its module."""
    for each in dis.get_instructions(code):
        if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield each.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None
