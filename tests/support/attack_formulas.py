"""Losses of attacks point by point, from their formulas."""

import math


def attack_loss(name, logits, y, clean):
    """Each loss point by point, from its formula."""
    found = []
    for z, label, z0 in zip(logits.tolist(), y.tolist(), clean.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(v) for v in z))
        others = max(v for j, v in enumerate(z) if j != label)
        top = sorted(z, reverse=True)
        if name == "ce":
            found.append(log_sum - z[label])
        elif name == "margin":
            found.append(others - z[label])
        elif name == "dlr":
            found.append(-(z[label] - others) / (top[0] - top[2] + 1e-12))
        else:
            total = sum(math.exp(v) for v in z0)
            p = [math.exp(v) / total for v in z0]
            found.append(
                sum(pj * (math.log(pj) - (zj - log_sum)) for pj, zj in zip(p, z, strict=True))
            )
    return found
