"""Files of weights: what is taken out of them, and what a file that holds none is told."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robust_plugin.recipes.cli import main
from robust_plugin.recipes.models.weights import load_weights

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n"


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def fresh() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def momentum(network: nn.Module) -> dict[str, Any]:
    """The state of an optimizer, which holds tensors too."""
    network = copy.deepcopy(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 3)).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("key", ["model", "net", "model_state_dict", "state_dict", "ema"])
def test_the_one_state_under_a_key_is_taken(key: str, network: nn.Module, tmp_path: Path) -> None:
    content = {"epoch": 3, key: network.state_dict(), "optimizer": momentum(network)}
    torch.save(content, tmp_path / "weights.pt")
    model = fresh()
    load_weights(model, tmp_path / "weights.pt")
    x = torch.ones(5, 3)
    assert torch.equal(model(x), network(x))


@pytest.mark.parametrize("prefix", ["backbone.", "module.", "net."])
def test_one_name_before_all_others_is_taken_off(
    prefix: str, network: nn.Module, tmp_path: Path
) -> None:
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "weights.pt")
    model = fresh()
    load_weights(model, tmp_path / "weights.pt")
    x = torch.ones(5, 3)
    assert torch.equal(model(x), network(x))


def test_names_that_are_not_the_models_behind_their_first_part_are_refused(tmp_path: Path) -> None:
    torch.save({"net.body.weight": torch.zeros(4, 3)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"does not fit the model; .*net\.body\.weight"):
        load_weights(fresh(), tmp_path / "weights.pt")


@pytest.mark.parametrize("keys", [("model", "ema"), ("state_dict", "state_dict_ema")])
def test_two_states_in_one_file_are_refused_by_their_keys(
    keys: tuple[str, str], network: nn.Module, tmp_path: Path
) -> None:
    torch.save({**dict.fromkeys(keys, network.state_dict()), "epoch": 3}, tmp_path / "weights.pt")
    model, before = fresh(), fresh().state_dict()
    with pytest.raises(ValueError, match=f"{keys[0]!r}, {keys[1]!r}, 'epoch'; .*{keys[1]!r}. Exp"):
        load_weights(model, tmp_path / "weights.pt")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_file_without_a_state_is_told_its_keys(tmp_path: Path) -> None:
    torch.save({"config": {"lr": 0.1}, "epoch": 3}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"its keys are 'config', 'epoch'; .*: none. Expected"):
        load_weights(fresh(), tmp_path / "weights.pt")


def object_beside(path: Path) -> None:
    torch.save({"state_dict": fresh().state_dict(), "args": Path("data")}, path)


def archive(path: Path) -> None:
    with pytest.warns(FutureWarning):
        torch.jit.save(torch.jit.trace(fresh(), torch.ones(1, 3)), path)  # type: ignore[no-untyped-call]


NO_WEIGHTS: list[tuple[str, Callable[[Path], object], str]] = [
    ("empty.pt", lambda p: p.write_bytes(b""), r"is empty \(0 bytes\); write or download it again"),
    ("empty.safetensors", lambda p: p.write_bytes(b""), r"is empty \(0 bytes\); write or"),
    ("pointer.pt", lambda p: p.write_text(POINTER), "is a pointer of Git LFS .*git lfs pull"),
    ("pointer.safetensors", lambda p: p.write_text(POINTER), "is a pointer of Git LFS"),
    ("folder", lambda p: p.mkdir(), "is a folder; give the file of weights in it"),
    ("folder.safetensors", lambda p: p.mkdir(), "is a folder; give the file of weights in it"),
    ("text.pt", lambda p: p.write_text("hello\nworld\n"), "it is damaged, or not a file of"),
    ("text.safetensors", lambda p: p.write_text("hello\n"), "truncated or no safetensors file"),
    ("network.pt", lambda p: torch.save(fresh(), p), r"it holds torch\.nn\.modules\.\w+\.\w+ "),
    ("object.pt", object_beside, r"it holds pathlib\S* beside tensors, and loading that could"),
    ("archive.pt", archive, "it is damaged, or not a file of tensors that torch.save wrote"),
]


@pytest.mark.parametrize(("name", "write", "message"), NO_WEIGHTS, ids=[n[0] for n in NO_WEIGHTS])
def test_a_file_without_weights_is_named_and_nobody_is_told_to_run_it(
    name: str, write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}.*{message}") as found:
        load_weights(fresh(), tmp_path / name)
    said = str(found.value)
    assert "weights_only" not in said and "safe_globals" not in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("command", ["evaluate", "hydra"])
def test_an_empty_file_is_named_by_the_commands(
    command: str,
    tmp_path: Path,
    words: Callable[..., list[str]],
    at_workplace: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.pt").write_bytes(b"")
    if command == "hydra":
        given = words("hydra", tmp_path / "out", f"--checkpoint={tmp_path / 'empty.pt'}")
    else:
        given = ["evaluate", f"--checkpoint={tmp_path / 'empty.pt'}"]
    assert main(given) == 2
    assert f"error: {tmp_path / 'empty.pt'} is empty (0 bytes)" in capsys.readouterr().err
