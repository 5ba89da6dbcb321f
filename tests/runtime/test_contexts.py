"""What contexts switch inside, and that all is as before outside."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from robust_plugin.runtime.contexts import evaluating, exact, keeping_modes, unfrozen

X = torch.zeros(1)


@pytest.fixture(autouse=True)
def switches() -> Iterator[None]:
    backends = torch.backends
    before = backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield
    if hasattr(backends.cudnn, "conv"):  # undo the newer ones, which the older do not reach
        backends.fp32_precision = "none"
        backends.cudnn.conv.fp32_precision = backends.cudnn.rnn.fp32_precision = "tf32"
        backends.cuda.matmul.fp32_precision = "none"
    backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


@pytest.mark.parametrize("convolutions", [True, False])
@pytest.mark.parametrize("products", ["highest", "high", "medium"])
def test_switches_are_off_inside_and_back_afterwards(convolutions: bool, products: str) -> None:
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)
    with pytest.raises(KeyError), exact(X):
        assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
        raise KeyError
    assert torch.backends.cudnn.allow_tf32 is convolutions
    assert torch.get_float32_matmul_precision() == products


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9")
def test_the_newer_switches_too() -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    cudnn.conv.fp32_precision, matmul.fp32_precision = "ieee", "tf32"
    with exact(X):
        assert {cudnn.conv.fp32_precision, matmul.fp32_precision} == {"ieee"}
    assert (cudnn.conv.fp32_precision, matmul.fp32_precision) == ("ieee", "tf32")


def test_no_autocast_inside() -> None:
    product: Callable[[], torch.Tensor] = lambda: torch.ones(2, 2) @ torch.ones(2, 2)  # noqa: E731
    with torch.autocast("cpu", torch.bfloat16):
        with exact(X):
            assert product().dtype == torch.float32
        assert product().dtype == torch.bfloat16


def mixed() -> nn.Module:
    """A network whose modules are in both modes, and whose first layer is frozen."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    model[1].eval()
    model[0].requires_grad_(False)
    return model


def state(model: nn.Module) -> tuple[list[bool], list[bool]]:
    modes = [module.training for module in model.modules()]
    return modes, [parameter.requires_grad for parameter in model.parameters()]


@pytest.mark.parametrize("fails", [False, True])
def test_evaluation_mode_inside_and_every_modules_own_mode_after(fails: bool) -> None:
    model = mixed()
    before = state(model)
    try:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            model[2].train()
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert state(model) == before and before[0] == [True, True, False, True]


def test_modes_that_the_code_inside_changes_come_back() -> None:
    model = mixed()
    before = state(model)
    with keeping_modes(model):
        assert state(model) == before
        model.eval()
    assert state(model) == before


def test_a_model_without_an_evaluation_mode_is_named() -> None:
    class Exported(nn.Module):
        def eval(self) -> "Exported":
            raise NotImplementedError("calling eval() is not supported")

    said = "Exported has no evaluation mode .*exported from"
    with pytest.raises(ValueError, match=said), evaluating(Exported()):
        pytest.fail("entered")


@pytest.mark.parametrize("fails", [False, True])
def test_unfrozen_parameters_are_frozen_again_by_name(fails: bool) -> None:
    model = mixed()
    before = state(model)
    try:
        with unfrozen(model):
            assert all(parameter.requires_grad for parameter in model.parameters())
            model.eval()
            model[0].weight = nn.Parameter(torch.ones(1, 2))  # cut by the code inside
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert state(model) == before and model[0].weight.shape == (1, 2)
