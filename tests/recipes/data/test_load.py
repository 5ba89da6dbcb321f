"""The data of a run: what its settings name, loaded once, with extra images beside it."""

from pathlib import Path

import numpy as np
import pytest

from robust_plugin.recipes.config.schema import DataConfig
from robust_plugin.recipes.data.load import check_folder, data_of


def test_runs_with_the_same_settings_share_their_data() -> None:
    first = data_of(DataConfig(test=500))
    assert data_of(DataConfig(test=500)) is first
    assert len(first.test) == 500  # type: ignore[arg-type]
    assert data_of(DataConfig(test=300)) is not first


def test_extra_images_are_training_points(tmp_path: Path) -> None:
    images = np.zeros((7, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "extra.npz", images=images, labels=np.arange(7))
    plain, more = data_of(DataConfig()), data_of(DataConfig(extra=tmp_path / "extra.npz"))
    assert len(more.train) == len(plain.train) + 7  # type: ignore[arg-type]
    assert len(more.test) == len(plain.test)  # type: ignore[arg-type]


def test_a_folder_beside_digits_is_refused() -> None:
    check_folder(DataConfig("digits"))
    check_folder(DataConfig("cifar10", folder=Path("images")))
    with pytest.raises(ValueError, match="data.folder is images, but data.name is 'digits'"):
        check_folder(DataConfig(folder=Path("images")))
