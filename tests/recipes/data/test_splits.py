import pytest
import torch

from robust_plugin.recipes.data.splits import hold_out, stratified_split


def test_every_point_lands_on_exactly_one_side() -> None:
    labels = torch.randint(0, 7, (523,), generator=torch.Generator().manual_seed(3)).tolist()
    kept, out = stratified_split(labels, 101, seed=0)
    assert len(out) == 101
    assert sorted(kept + out) == list(range(523))


def test_classes_give_their_share_to_within_one_point() -> None:
    labels = [0] * 70 + [1] * 20 + [2] * 10
    _, out = stratified_split(labels, 33, seed=0)
    counts = [sum(labels[i] == c for i in out) for c in range(3)]
    assert counts == [23, 7, 3]  # 23.1, 6.6, 3.3: the one point left goes to the largest remainder


def test_depends_on_its_seed_alone() -> None:
    labels = [0, 1] * 50
    before = torch.random.get_rng_state()
    first = stratified_split(labels, 20, seed=5)
    torch.manual_seed(123)
    assert stratified_split(labels, 20, seed=5) == first
    assert stratified_split(labels, 20, seed=6) != first
    torch.random.set_rng_state(before)
    stratified_split(labels, 20, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("held_out", [0, 4, -1])
def test_an_empty_side_is_refused(held_out: int) -> None:
    with pytest.raises(ValueError, match=f"cannot hold {held_out} of 4"):
        stratified_split([0, 0, 1, 1], held_out, seed=0)


def test_a_class_that_would_keep_nothing_is_named() -> None:
    with pytest.raises(ValueError, match="class 1 with none of its 1"):
        stratified_split([0, 0, 0, 1], 3, seed=0)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_share_outside_0_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"legal is a share .* in \(0, 1\)"):
        hold_out([0, 1] * 10, share, seed=0)
