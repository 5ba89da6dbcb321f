"""What newer torch and NumPy lack, only where it is needed."""

import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from robust_plugin import (
    ThreatModel,
)
from robust_plugin.adapters.auto_lirpa import LiRPA, module
from robust_plugin.adapters.auto_lirpa.shims import (
    accept_remove_duplicate,
    default_dtype,
    learning_at_the_ends,
)


@pytest.mark.parametrize("method", ["alpha-CROWN", "alpha-CROWN-fixed"])
def test_alpha_crown_is_strictly_better_than_crown(cnn, batch, method, monkeypatch):
    """And, without the clamp's gradient, not at all: the test would notice."""
    model, x, y = cnn(3).eval(), batch[0][:4], batch[1][:4]
    threat = ThreatModel("Linf", eps=0.05)
    crown = LiRPA(threat, "CROWN").margins(model, x, y)
    alpha = LiRPA(threat, method).margins(model, x, y)
    assert (alpha >= crown - 1e-5).all()
    others = y[:, None] != torch.arange(10)
    assert ((alpha - crown) > 1e-4)[others].float().mean() > 0.9
    at_bounds = torch.zeros(1, requires_grad=True)
    torch.clamp(at_bounds, min=0.0, max=1.0).backward()
    if float(at_bounds.grad) == 0:
        monkeypatch.setattr(module, "learning_at_the_ends", nullcontext)
        frozen = LiRPA(threat, method).margins(model, x, y)
        assert torch.allclose(frozen, crown, atol=1e-5)


def test_importing_changes_nothing_for_others():
    code = (
        "import logging, warnings, torch\n"
        "from robust_plugin.adapters.auto_lirpa import certifier\n"
        "state = lambda: (list(warnings.filters), list(logging.getLogger().handlers),\n"
        "                 logging.getLogger().level, hasattr(torch._C.Node, '__getitem__'))\n"
        "before = state()\n"
        "certifier._library()\n"
        "assert state() == before\n"
        "assert torch._C._jit_set_profiling_executor(True)\n"
        "assert torch._C._jit_set_profiling_mode(True)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_clamp_has_its_values_and_the_gradient_of_the_identity_inside_alone():
    values = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0], requires_grad=True)
    with learning_at_the_ends():
        out = torch.clamp(values, min=0.0, max=1.0)
        assert torch.equal(torch.clamp(values, min=0.0), values.relu())
    assert out.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    out.sum().backward()
    assert values.grad.tolist() == [1.0] * 5
    outside = torch.tensor([2.0], requires_grad=True)
    torch.clamp(outside, 0.0, 1.0).backward()
    assert outside.grad.item() == 0.0


def test_the_default_dtype_is_restored():
    before = torch.get_default_dtype()
    with pytest.raises(KeyError), default_dtype(torch.float64):
        assert torch.eye(2).dtype == torch.float64
        raise KeyError
    assert torch.get_default_dtype() == before


def test_a_class_of_old_lists_its_parameters_as_torch_asks_now():
    class Old(nn.Linear):
        def _named_members(self, get_members_fn, prefix="", recurse=True):
            for key, member in get_members_fn(self):
                yield prefix + key, member

    with pytest.raises(TypeError, match="remove_duplicate"):
        list(Old(2, 2).named_parameters())
    accept_remove_duplicate(Old)
    assert [name for name, _ in Old(2, 2).named_parameters()] == ["weight", "bias"]
