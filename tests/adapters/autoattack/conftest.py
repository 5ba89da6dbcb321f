"""A small network trained on digits, for all tests of AutoAttack."""

import pytest
import torch
from autoattack_reference import Trained, network
from sklearn.datasets import load_digits
from torch import Tensor, nn


@pytest.fixture(scope="module")
def trained() -> Trained:
    """A network trained on digits below a number of classes, and points it has not seen."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target, dtype=torch.int64)
    known: dict[int, tuple[nn.Module, Tensor, Tensor]] = {}

    def train(classes: int) -> tuple[nn.Module, Tensor, Tensor]:
        if classes not in known:
            x, y = images[labels < classes], labels[labels < classes]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = network(classes)
                optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
                for _ in range(60):
                    chosen = torch.randint(40, len(x), (128,))
                    noisy = x[chosen] + 0.1 * torch.randn(128, 1, 8, 8).sign()
                    loss = nn.functional.cross_entropy(model(noisy), y[chosen])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            known[classes] = (model.eval(), x[:40], y[:40])
        return known[classes]

    return train
