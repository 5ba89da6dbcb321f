"""The data of a run: what its settings name, loaded once, with extra images beside it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_disk import enlarge, small_disk
from small_images import write_images

from robust_plugin.recipes.cli import main
from robust_plugin.recipes.config.schema import DataConfig
from robust_plugin.recipes.data.load import check_folder, data_of
from robust_plugin.runtime.files import is_partial


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
    for name in ("digits", "mnist5k"):
        with pytest.raises(ValueError, match=f"data.folder is images, but data.name is '{name}'"):
            check_folder(DataConfig(name, folder=Path("images")))


def test_settings_reach_the_data_set(tmp_path: Path) -> None:
    write_images(tmp_path, per_class=4)
    grey = DataConfig("folder", folder=tmp_path, colour="grey", image_size=6)
    assert data_of(grey).shape == (1, 6, 6)
    Image.new("RGBA", (12, 12)).save(tmp_path / "test" / "cat" / "0.png")
    white = DataConfig("folder", folder=tmp_path, background="white", validation=0.25)
    assert data_of(white).shape == (3, 12, 12)
    with pytest.raises(ValueError, match="download with 'folder'"):
        data_of(DataConfig("folder", folder=tmp_path, download=True))


# --- whole commands ------------------------------------------------------------------------------

Words = Callable[..., list[str]]


def test_a_run_and_its_evaluation_name_the_classes(
    tmp_path: Path, run_tiny: Callable[..., Any]
) -> None:
    names = ["class0", "class1", "class2", "class3"]
    assert run_tiny("magnitude", tmp_path / "run")["report"]["class_names"] == names
    words = ["evaluate", str(tmp_path / "run"), "--attack", "pgd", "--checks", "0"]
    assert main([*words, "--out", str(tmp_path / "evaluated.json")]) == 0
    assert json.loads((tmp_path / "evaluated.json").read_text())["class_names"] == names


def test_a_broken_test_image_is_found_before_training(
    at_workplace: Path, tmp_path: Path, words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree("images", tmp_path / "images")
    (copy / "test" / "class3" / "7.png").write_bytes(b"")
    assert main(words("hydra", tmp_path / "out", f"--data.folder={copy}")) == 2
    said = capsys.readouterr().err
    assert "error: 1 of 96 image files of" in said and "class3/7.png is no image file" in said
    assert "epoch" not in said and not (tmp_path / "out").exists()


def test_a_folder_for_results_that_cannot_be_written_to_is_found_first(
    tmp_path: Path,
    run_tiny: Callable[..., Any],
    words: Words,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_tiny("magnitude", tmp_path / "run")
    measure = ["evaluate", str(tmp_path / "run"), "--attack", "pgd", "--checks", "0", "--out"]
    with small_disk(tmp_path / "disk", 8, "ro") as disk:
        for command in (
            words("magnitude", disk / "a"),
            words("magnitude", disk / "a", "--dry-run"),
            words("compare", disk / "a"),
            words("compare", disk / "a", "--dry-run"),
            [*measure, str(disk / "a")],
            [*measure, str(disk / "a.json")],
        ):
            capsys.readouterr()
            assert main(command) == 2
            error = capsys.readouterr().err.splitlines()[-1]
            assert error.startswith(f"error: cannot write to the folder {disk}"), command
            assert error.endswith(": Read-only file system; give another --out.")


def test_a_run_on_images_that_have_changed_is_not_continued(
    tmp_path: Path, run_tiny: Callable[..., Any], words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    images = shutil.copytree("images", tmp_path / "images")
    where = f"--data.folder={images}"
    run_tiny("magnitude", tmp_path / "out", where)
    run_tiny("magnitude", tmp_path / "out", where)  # it is finished, and stays so
    Image.new("RGB", (8, 8)).save(images / "train" / "class0" / "0.png")
    data_of.cache_clear()
    assert main(words("magnitude", tmp_path / "out", where)) == 2
    assert "holds a run on other images" in capsys.readouterr().err


def test_a_run_on_a_full_disk_ends_in_a_sentence_and_goes_on_later(
    at_workplace: Path,
    tmp_path: Path,
    run_tiny: Callable[..., Any],
    results: Callable[[Path], Any],
    words: Words,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = run_tiny("magnitude", tmp_path / "whole")
    with small_disk(tmp_path / "disk", 48) as disk:
        capsys.readouterr()
        assert main(words("magnitude", disk / "run")) == 1
        said = capsys.readouterr().err
        assert "error: there is no space left on the disk to write" in said
        assert "Traceback" not in said and "give the same command again" in said
        assert not [path for path in (disk / "run").iterdir() if is_partial(path)]
        enlarge(disk, 20_000)
        assert main(words("magnitude", disk / "run")) == 0
        again = results(disk / "run")
    for name in whole:
        if name not in ("report", "config"):
            assert again[name] == whole[name], name
    assert again["report"]["report"] == whole["report"]["report"]
