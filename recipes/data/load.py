"""A run folder: what is in it, and how an interrupted run goes on.

    config.json           all settings
    log.jsonl             a line an epoch
    <stage>.safetensors   model, pruner and optimizer after the stage's last finished epoch
    <stage>.best.safetensors   after its best one, by the validation points
    model.safetensors     the finished network, plain, dense names
    report.json           its evaluation on the test points
    smoothing.txt, .png   certified accuracy against radius, where it is asked for
    unfinished-...        verdicts of an evaluation that was interrupted

Of several processes only the first writes, and all read: they have to see the same folder. Every
file is written whole or not at all, and every stage file names the settings it came from. Nothing
is written before the first epoch has passed, nor where the settings are refused.
"""

from __future__ import annotations

from functools import lru_cache

from robust_plugin.recipes.config.schema import DataConfig
from robust_plugin.recipes.data.datasets import Data, load_data
from robust_plugin.recipes.data.extra import with_extra


@lru_cache(maxsize=1)
def data_of(of: DataConfig) -> Data:
    """Return the data of a run.

    Runs of one process, as a comparison's are, share them: their images are decoded once.
    """
    data = load_data(
        of.name,
        folder=of.folder,
        validation=of.validation,
        image_size=of.image_size,
        augmentation=of.augmentation,
        test=of.test,
    )
    if of.extra is None:
        return data
    return with_extra(data, of.extra, share=of.extra_share, batch_size=of.batch_size)


def check_folder(data: DataConfig) -> None:
    """Raise a ValueError for a folder that nobody would read, where digits are learned instead."""
    if data.name == "digits" and data.folder is not None:
        raise ValueError(
            f"data.folder is {data.folder}, but data.name is 'digits', which reads none; give "
            "--data.name too: folder, cifar10, cifar100 or svhn."
        )
