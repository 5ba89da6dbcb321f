"""Import the library behind AutoAttack, pyautoattack or autoattack, and silence its log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Within the context, silence the library's logger.

    The library would repeat its warnings for every batch, and ``evaluate`` and ``AutoAttack`` check
    the network for the same problems.
    """
    logger = logging.getLogger("auto-attack")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def library() -> tuple[str, Any]:
    """Return the name of the installed package, and the class AutoAttack of that package.

    Raises:
        ImportError: if neither package is installed; the message has the install command.
    """
    try:
        from pyautoattack import AutoAttack as Library

        return "pyautoattack", Library
    except ImportError:
        pass
    try:
        from autoattack import AutoAttack as Library

        return "autoattack", Library
    except ImportError as error:
        raise ImportError("AutoAttack needs: pip install pyautoattack") from error
