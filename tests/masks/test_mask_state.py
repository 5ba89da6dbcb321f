"""The bytes of a mask in a state_dict."""

from __future__ import annotations

import json

import pytest
import torch

from robust_plugin.masks.mask_state import facts_of, mask_of, packed


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 5, 2), (9, 1, 1)])
def test_facts_and_bits_come_back(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4
    facts = {"kept": int(mask.sum()), "rates": [0.1, -2.5e-17]}
    state = packed(facts, mask, length=100)
    assert state.dtype == torch.uint8
    assert len(state) == 8 + 100 + -(-mask.numel() // 8)
    assert facts_of(state) == facts
    assert torch.equal(mask_of(state, mask.shape), mask)


def test_the_bytes_by_hand() -> None:
    text = json.dumps({"a": 1}).encode()
    mask = torch.tensor([1, 0, 1, 0, 0, 0, 0, 1, 1], dtype=torch.bool)
    wanted = [len(text), 0, 0, 0, 0, 0, 0, 0, *text, 1 + 4 + 128, 1]
    assert packed({"a": 1}, mask).tolist() == wanted


def test_the_shape_stays_while_the_facts_change() -> None:
    states = [packed({"step": step}, length=50) for step in (1, 123456)]
    assert states[0].shape == states[1].shape


def test_what_is_no_such_state() -> None:
    mask = torch.ones(20, dtype=torch.bool)
    state = packed({"a": 1}, mask)
    average = (state.float() * 0.5).to(torch.uint8)
    for wrong in (state.float(), average, state[:5], state[None], None, torch.empty(0)):
        with pytest.raises(ValueError, match="the state of a mask is damaged"):
            facts_of(wrong)
    for shape in ((30,), (9,)):
        with pytest.raises(ValueError, match="the state of a mask is damaged"):
            mask_of(state, shape)
