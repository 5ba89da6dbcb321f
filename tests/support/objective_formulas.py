"""Losses of objectives point by point, from their formulas."""

import math


def sharp(cnn):
    """A network sure enough of itself that KL(p || q) and KL(q || p) differ."""
    model = cnn().double()
    model[6].weight.data.mul_(20)
    return model


def softmax(row):
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def trades_loss(clean, robust, y, beta):
    """CE(f(x), y) + beta KL(p || p'), point by point."""
    total = 0.0
    for z, z_adv, label in zip(clean.tolist(), robust.tolist(), y.tolist(), strict=True):
        p, q = softmax(z), softmax(z_adv)
        kl = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
        total += -math.log(p[label]) + beta * kl
    return total / len(y)
