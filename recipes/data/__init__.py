"""Data sets, splits, batches and images.

Start with ``load.py``, which loads the data that a run's settings name. ``datasets.py`` loads a
data set by its name: ``digits.py`` loads scikit-learn's digits, ``image_sets.py`` loads image
folders, CIFAR and SVHN, and ``train_val_test.py`` has the class of the result. ``splits.py``
chooses the validation points, ``images.py`` keeps images in memory and augments them,
``pixels.py`` decodes an image file, and ``extra_images.py`` adds extra training images.
``batches.py`` puts points into batches, and ``epoch_loader.py`` loads the batches.

Uses: config, runtime.
Used by: training, evaluate, dry.
"""

from robust_plugin.recipes.data.datasets import load_data
from robust_plugin.recipes.data.epoch_loader import loader
from robust_plugin.recipes.data.load import data_of
from robust_plugin.recipes.data.train_val_test import Data

__all__ = ["Data", "load_data", "loader", "data_of"]
