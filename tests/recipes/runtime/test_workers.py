"""Jobs in this process and in workers. tests/recipes/compare tests the death of the parent."""

import math
import os
import sys

import pytest

from robust_plugin.recipes.runtime import workers
from robust_plugin.recipes.runtime.workers import in_parallel


def test_results_come_in_the_order_of_the_items() -> None:
    assert in_parallel(math.factorial, [9, 2, 5], jobs=2, what="factorials") == [362880, 2, 120]


def test_one_job_or_one_item_runs_in_this_process() -> None:
    seen: list[int] = []
    assert in_parallel(seen.append, [3, 1], jobs=1, what="items") == [None, None]
    assert in_parallel(seen.append, [2], jobs=4, what="items") == [None]
    assert seen == [3, 1, 2]  # another process would not change this list


def test_freed_memory_is_kept_under_glibc_only(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "linux" and os.confstr("CS_GNU_LIBC_VERSION"):
        assert workers.keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not workers.keep_freed_memory()
