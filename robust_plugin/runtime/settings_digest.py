"""``description``: a name and a digest that tell attacks and certifiers apart, for journals.

The digest is computed from an object's code and from everything that the object refers to. Two
objects of equal content have the same digest in every process that runs the same program. Objects
that differ in class, code, options or state have different digests. The ``repr`` is not enough:
that of a function ends in a memory address, and does not show the values of its closure.
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
# Attributes that every network has; its fingerprint covers weights and buffers.
_NETWORK_ATTRIBUTES = frozenset(vars(nn.Module()))


def description(method: object) -> str:
    """Return a readable name and a digest of an object, such as ``"IBP(threat=...) 3c0f..."``.

    The digest covers the code, defaults and closure of a function and the globals that it reads,
    the class and state of an instance, and the values of tensors and networks. Code of installed
    packages is covered by its name only. Fields of a dataclass that are marked
    ``field(compare=False)``, such as caches and progress callbacks, are left out.

    Args:
        method: an attack, a certifier or any other object.

    Raises:
        TypeError: if the object refers to something whose state cannot be read, such as an open
            file.
    """
    digest, shown = _Digests().digest(method), repr(method)
    if " at 0x" in shown or len(shown) > 200:
        shown = _path(method if isinstance(method, types.FunctionType | type) else type(method))
    return f"{shown} {digest}"


class _Digests:
    """Computes digests of objects, each object once.

    Attributes:
        open: nesting depth of each object whose digest is being computed, by ``id``. Where such an
            object is met again inside itself, this depth stands for it.
        done: digest of each finished object, by ``id``, with the object itself, because an ``id``
            may be used again after its object is deleted.
    """

    def __init__(self) -> None:
        self.open: dict[int, int] = {}
        self.done: dict[int, tuple[str, object]] = {}

    def digest(self, value: Any) -> str:
        """Return the digest of an object, or type and value as text for numbers and strings."""
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
        return [self.digest(each) for each in values]

    def _named(self, values: dict[str, Any]) -> list[tuple[str, str]]:
        return [(name, self.digest(each)) for name, each in values.items()]

    def _parts(self, value: Any) -> Any:
        """Return what the digest of an object is computed from: strings and digests, nested."""
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
            return kind.__name__, self.digest(value.__func__)
        if isinstance(value, property):
            return "property", self._all([value.fget, value.fset, value.fdel])
        if isinstance(value, functools.cached_property):
            return "cached property", self.digest(value.func)
        if isinstance(value, type):
            return self._class(value)
        if dataclasses.is_dataclass(value):
            return "dataclass", self.digest(kind), self._fields(value)
        return self._instance(value)

    def _function(self, function: types.FunctionType) -> Any:
        cells = [_content(cell) for cell in function.__closure__ or ()]
        parts = [function.__code__, function.__defaults__, function.__kwdefaults__, cells]
        read: dict[str, Any] = {}
        if not _installed(function.__module__):
            there = function.__globals__
            read = {n: there[n] for n in sorted(set(_names(function.__code__))) if n in there}
        return "function", _path(function), self._all(parts), self._named(read)

    def _class(self, kind: type) -> Any:
        if _installed(kind.__module__):
            return "class", _path(kind)
        own = {name: each for name, each in vars(kind).items() if _decides(name, each)}
        return "class", _path(kind), self._all(kind.__bases__), self._named(own)

    def _layer(self, layer: nn.Module) -> Any:
        own = {key: each for key, each in vars(layer).items() if key not in _NETWORK_ATTRIBUTES}
        return self.digest(type(layer)), layer.training, self._named(own)

    def _fields(self, value: Any) -> Any:
        fields = dataclasses.fields(value)
        state = {f.name: getattr(value, f.name) for f in fields} | getattr(value, "__dict__", {})
        for each in (f for f in fields if not f.compare):
            del state[each.name]
        return self._named(state)

    def _instance(self, value: Any) -> Any:
        """Return what the digest of an object is computed from: all that pickle would save.

        Raises:
            TypeError: if the state of the object cannot be read.
        """
        if isinstance(value, types.BuiltinFunctionType):
            owner = value.__self__
            return (
                "builtin",
                _path(value),
                isinstance(owner, types.ModuleType) or self.digest(owner),
            )
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:  # each class raises errors of its own
            raise TypeError(
                f"a journal cannot tell {value!r} from others of its kind, as its state cannot be "
                "read; give the method as a frozen dataclass whose fields are its settings, or no "
                "journal."
            ) from error
        if isinstance(reduced, str):  # pickle would save the name alone
            return "name", _path(value), reduced, self.digest(getattr(value, "__wrapped__", None))
        return "instance", [
            self._all(each) if isinstance(each, Iterator) else self.digest(each) for each in reduced
        ]


def _path(value: Any) -> str:
    """Return the module and the qualified name of a function or class, with a dot between."""
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"


def _installed(module: str | None) -> bool:
    """Return whether a module name belongs to Python, this package or an installed package."""
    name = module or ""
    if name.partition(".")[0] in (*sys.stdlib_module_names, __name__.partition(".")[0]):
        return True
    file = str(getattr(sys.modules.get(name), "__file__", ""))
    return "site-packages" in file or "dist-packages" in file


def _decides(name: str, value: object) -> bool:
    """Return whether a class attribute affects what instances do, as methods and constants do.

    Args:
        name: name of the attribute.
        value: value of the attribute.
    """
    if name.startswith(("__annotat", "_abc_")) or isinstance(value, _SLOTS):
        return False
    return isinstance(value, _CALLED) or not (name.startswith("__") and name.endswith("__"))


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the global names that ``code``, and the functions defined in it, read."""
    for each in dis.get_instructions(code):
        if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield each.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _content(cell: Any) -> Any:
    """Return the value of a closure cell, None if no value has been assigned yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
