"""Layers that run faster, and files that are smaller, because most weights are zero.

Start with ``csr.py``: it chooses, by measured time, the layers that run faster on a CPU with a
weight in compressed sparse row (CSR) form. ``csr_layers.py`` has these layers,
``replace_layers.py`` replaces layers in a copy of a network, ``csr_files.py`` saves and loads
networks with CSR layers. ``two_four.py`` converts layers to torch's 2:4 format for GPUs,
``compressed.py`` writes small files of pruned networks.

Not here: ONNX (``adapters/onnx.py``), removal of channels (``channels``).

Uses: masks, copies, runtime.
Used by: adapters, recipes.
"""

from robust_plugin.export.compressed import (
    load_compressed,
    save_compressed,
)
from robust_plugin.export.csr import (
    SparseReport,
    sparse,
)
from robust_plugin.export.csr_files import (
    load_sparse,
    save_sparse,
)
from robust_plugin.export.two_four import (
    semi_structured,
)

__all__ = [
    "load_compressed",
    "save_compressed",
    "SparseReport",
    "sparse",
    "load_sparse",
    "save_sparse",
    "semi_structured",
]


def __dir__() -> list[str]:
    return sorted(__all__)
