"""The hint in an error message that names what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(near: Sequence[str]) -> str:
    """Return " (did you mean a, b or c?)" for an error message; empty if nothing is near.

    Args:
        near: what was probably meant, the most likely one first.

    >>> did_you_mean(["--prune.lr", "--pretrain.lr"])
    ' (did you mean --prune.lr or --pretrain.lr?)'
    """
    if not near:
        return ""
    *most, last = near
    return f" (did you mean {', '.join(most)} or {last}?)" if most else f" (did you mean {last}?)"


def nearest(word: str, legal: Iterable[str], *, n: int = 1) -> list[str]:
    """Return up to ``n`` of the legal words that are spelt like a word, the nearest first.

    Args:
        word: the misspelt word.
        legal: the words to choose from.
        n: largest number of words.
    """
    return difflib.get_close_matches(word, list(legal), n=n)
