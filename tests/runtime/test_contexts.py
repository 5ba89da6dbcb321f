"""Inside ``exact`` nothing is rounded; outside all is as the user has it."""

from collections.abc import Callable, Iterator

import pytest
import torch

from robust_plugin.runtime.contexts import exact

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
