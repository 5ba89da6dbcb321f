"""glibc's allocator, told to keep what it freed."""

from __future__ import annotations

import ctypes
import sys

# Numbers of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for the next tensor; return whether it does now.

    A forward pass allocates and frees the same megabytes again and again, and by default glibc
    returns them to the kernel each time and has them zeroed anew: adversarial training of a
    ResNet-18 of width 16 took 1.3 times as long (batch 128, one thread). For the command line's own
    processes; a library has no business with its user's allocator. Nothing happens elsewhere than
    under glibc.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 64 << 20))
    return all(mallopt(name, value) == 1 for name, value in settings)
