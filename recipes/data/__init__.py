"""Data sets, splits, batches and images.

Start with ``load.py``, which loads the data that a run's settings name. ``datasets.py`` loads a
data set by its name: ``digits.py`` loads scikit-learn's digits, ``mnist.py`` 5,000 images of MNIST,
``image_sets.py`` image folders, CIFAR and SVHN, ``table.py`` images that a CSV or JSONL file names,
``hugging_face.py`` what the library datasets has saved, and ``own_function.py`` with
``own_parts.py`` what a function of the user returns. ``train_val_test.py`` has the class of the
result. ``image_files.py`` lists image files, ``image_checks.py`` looks at all of them before
training, ``pixels.py`` decodes one, and ``image_parts.py`` makes training, validation and test
points from them. ``splits.py`` chooses the validation points, ``images.py`` keeps images in memory
and augments them, and ``extra_images.py`` adds extra training images.
``batches.py`` puts points into batches, and ``epoch_loader.py`` loads the batches.

Uses: config, runtime.
Used by: training, evaluate, dry.
"""

from robust_plugin.recipes.data.datasets import load_data
from robust_plugin.recipes.data.epoch_loader import loader
from robust_plugin.recipes.data.load import data_of
from robust_plugin.recipes.data.train_val_test import Data

__all__ = ["Data", "load_data", "loader", "data_of"]
