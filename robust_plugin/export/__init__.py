"""Files and layers that make use of zeros.

``csr.py`` chooses, by measured time, the layers that run faster in compressed sparse row form;
``csr_layers.py`` has these layers, ``csr_files.py`` saves and loads them. ``two_four.py``
converts to torch's 2:4 format for GPUs, ``compressed.py`` writes small files of masked networks.

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
