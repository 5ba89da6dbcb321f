"""Files that cannot hold weights are refused with the reason."""

from pathlib import Path

import pytest

from robust_plugin.recipes.runtime.weight_files import check_file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no checkpoint at"),
        (b"", r"is empty \(0 bytes\); write or download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "run git lfs pull"),
    ],
)
def test_a_file_without_weights_is_refused(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "dense.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        check_file(path)
    assert str(path) in str(error.value)


def test_a_folder_is_refused_and_any_other_content_is_left_to_the_loader(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; give the file of weights in it"):
        check_file(tmp_path)
    (tmp_path / "dense.pt").write_bytes(b"version 2")
    check_file(tmp_path / "dense.pt")
