"""Random splits of a data set, stratified by class and the same for the same seed.

They hold out the validation points, by which models are chosen without using the test points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def stratified_split(
    labels: Sequence[int], held_out: int, *, seed: int
) -> tuple[list[int], list[int]]:
    """Split the indices 0 ... n - 1 at random into two parts, stratified by class.

    A class with c of the n points gives floor(c held_out / n) of them to the part that is held out.
    Classes with the largest remainders give one more each, until the part has held_out points; of
    equal remainders the smaller label comes first.

    Args:
        labels: class of each of the n points.
        held_out: number of points to hold out, 0 < held_out < n.
        seed: seed of the choice; torch's global generator is not used.

    Returns:
        tuple: the sorted indices of the points that are kept, and of those that are held out.

    Raises:
        ValueError: if held_out is not between 0 and n, or a class would keep no point.
    """
    n = len(labels)
    if not 0 < held_out < n:
        raise ValueError(
            f"cannot hold {held_out} of {n} points out: at least one must be on either side; "
            "change the validation share, or the number of test points"
        )
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(int(label), []).append(index)
    quota = {label: divmod(len(members[label]) * held_out, n) for label in sorted(members)}
    take = {label: whole for label, (whole, _) in quota.items()}
    by_remainder = sorted(quota, key=lambda label: -quota[label][1])
    for label in by_remainder[: held_out - sum(take.values())]:
        take[label] += 1
    generator = torch.Generator().manual_seed(seed)
    kept: list[int] = []
    out: list[int] = []
    for label, count in take.items():
        if count == len(members[label]):
            raise ValueError(
                f"holding {held_out} of {n} points out leaves class {label} with none of its "
                f"{count}; lower the validation share, or the number of test points"
            )
        order = torch.randperm(len(members[label]), generator=generator).tolist()
        out += [members[label][i] for i in order[:count]]
        kept += [members[label][i] for i in order[count:]]
    return sorted(kept), sorted(out)


def hold_out(labels: Sequence[int], share: float, *, seed: int) -> tuple[list[int], list[int]]:
    """Split indices as ``stratified_split`` does, where a share of the points is held out.

    Args:
        labels: class of each of the n points.
        share: share of the points to hold out, in (0, 1).
        seed: seed of the choice; torch's global generator is not used.

    Returns:
        tuple: the sorted indices of the points that are kept, and of those that are held out.

    Raises:
        ValueError: if the share is not in (0, 1), or ``stratified_split`` refuses the number of
            points that it gives.
    """
    if not 0 < share < 1:
        raise ValueError(f"validation={share!r}; legal is a share of the training points in (0, 1)")
    return stratified_split(labels, round(share * len(labels)), seed=seed)
