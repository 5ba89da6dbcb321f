"""Data sets, splits, batches and images.

Start with ``load.py``: the data that settings name. ``datasets.py`` reads each data set,
``splits.py`` makes validation points, ``images.py`` keeps and augments images, ``pixels.py``
decodes one, ``batches.py`` orders points into batches, ``extra.py`` mixes in additional images.

 Uses: config, runtime. Used by: training, evaluate, dry.
"""

from robust_plugin.recipes.data.datasets import (
    Data,
    load_data,
    loader,
)
from robust_plugin.recipes.data.load import (
    data_of,
)

__all__ = ["Data", "load_data", "loader", "data_of"]
