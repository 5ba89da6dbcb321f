"""Functions of the user, which options name as ``package.module:function``."""

from __future__ import annotations

import importlib
import inspect
import operator
import os
import sys
from collections.abc import Mapping
from typing import Any


def call(name: str, *, what: str, offered: Mapping[str, Any]) -> Any:
    """Call a function of the user, whose module may also be in the current folder.

    Args:
        name: where the function is, as "package.module:function".
        what: what the function makes, for error messages, such as "model".
        offered: arguments by name; the function gets those that it has parameters for.

    Returns:
        Any: what the function returns.

    Raises:
        ValueError: if the function cannot be imported, or fails.
        TypeError: if the object cannot be called with these arguments.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # as python -m does: the user's module may be there
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{what} {name!r}: cannot import {module!r}: {error}") from error
    try:
        function = operator.attrgetter(attribute)(found)
    except AttributeError as error:
        raise ValueError(f"{what} {name!r}: {module} has no {attribute!r}") from error
    if not callable(function):
        raise TypeError(f"{what} {name!r} is a {type(function).__name__}, not a function to call")
    signature = inspect.signature(function)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    taken = offered if takes_any else [key for key in offered if key in signature.parameters]
    given = {key: offered[key] for key in taken}
    try:
        signature.bind(**given)
    except TypeError as error:
        raise TypeError(
            f"{what} {name!r} has the signature {signature}: {error}; it is called with "
            f"{' and '.join(offered)} or with nothing, so wrap it in a function that fills the rest"
        ) from error
    try:
        return function(**given)
    except Exception as error:  # the user's own code
        raise ValueError(f"{what} {name!r} failed: {type(error).__name__}: {error}") from error
