"""Adversarial inputs that are found once and used twice."""

import torch
from torch import Tensor, nn

from robust_plugin.objectives.adversarial_inputs import attacked, keeping_inputs


def random_attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return x + torch.rand_like(x)


def test_inputs_are_repeated_in_their_order_and_only_within_the_context() -> None:
    model, x, y = nn.Linear(3, 2), torch.rand(4, 3), torch.zeros(4, dtype=torch.long)
    with keeping_inputs() as inputs:
        first, second = (attacked(random_attack, model, x, y) for _ in range(2))
        inputs.repeat()
        again = [attacked(random_attack, model, x, y) for _ in range(2)]
    assert torch.equal(again[0], first) and torch.equal(again[1], second)
    assert not torch.equal(first, second)
    assert not torch.equal(attacked(random_attack, model, x, y), first)


def test_the_attack_gets_the_network_without_its_wrapper() -> None:
    inner, seen = nn.Linear(3, 2), []

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append(model)
        return x

    attacked(attack, nn.DataParallel(inner), torch.rand(4, 3), torch.zeros(4, dtype=torch.long))
    assert seen == [inner]
