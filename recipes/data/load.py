"""Load the data that the settings of a run name."""

from __future__ import annotations

from functools import lru_cache

from robust_plugin.recipes.config.schema import DataConfig
from robust_plugin.recipes.data.datasets import load_data
from robust_plugin.recipes.data.extra_images import with_extra
from robust_plugin.recipes.data.train_val_test import Data


@lru_cache(maxsize=1)
def data_of(config: DataConfig) -> Data:
    """Return the data that settings name, with the extra training images if they name some.

    The result of the last call is kept: runs in one process with the same settings, as in a
    comparison, share it, and its images are decoded only once.
    """
    data = load_data(
        config.name,
        folder=config.folder,
        validation=config.validation,
        image_size=config.image_size,
        augmentation=config.augmentation,
        test=config.test,
        colour=config.colour,
        background=config.background,
        download=config.download,
    )
    if config.extra is None:
        return data
    return with_extra(data, config.extra, share=config.extra_share, batch_size=config.batch_size)


def check_folder(data: DataConfig) -> None:
    """Raise a ValueError if a folder is given together with a data set that reads none.

    Without this check, a user who forgets ``data.name`` would train on digits instead of the images
    in the folder, and not notice it.
    """
    if data.name in ("digits", "mnist5k") and data.folder is not None:
        raise ValueError(
            f"data.folder is {data.folder}, but data.name is {data.name!r}, which reads none; give "
            "--data.name too: folder, table, huggingface, cifar10, cifar100 or svhn."
        )
