import pytest
import torch

from robust_plugin import HydraPruner
from robust_plugin.pruning.phases import check_holds, step_was_skipped
from robust_plugin.runtime.distributed import check_ranks


def test_optimizer_must_hold_every_trained_parameter(cnn):
    model = cnn()
    check_holds(torch.optim.SGD(model.parameters(), lr=0.1), model)
    with pytest.raises(ValueError, match="lacks 7 parameters of this phase, such as '0.bias'"):
        check_holds(torch.optim.SGD([model[0].weight], lr=0.1), model)
    model.requires_grad_(False)
    check_holds(torch.optim.SGD([model[0].weight], lr=0.1), model)
    for wrong in (None, model, [model[0].weight]):
        with pytest.raises(TypeError, match=f"optimizer is a {type(wrong).__name__}"):
            check_holds(wrong, model)


def test_skipped_steps_of_fused_optimizers(cnn):
    optimizer = torch.optim.SGD(cnn().parameters(), lr=0.1)
    assert not step_was_skipped(optimizer)
    for found, skipped in [
        (torch.tensor([1.0]), True),
        (torch.tensor([0.0]), False),
        (None, False),
    ]:
        optimizer.found_inf = found
        assert step_was_skipped(optimizer) == skipped


def test_one_process_has_nothing_to_compare(cnn):
    check_ranks(cnn())


def test_a_skipped_step_moves_nothing(cnn, batch):
    model = cnn()
    pruner = HydraPruner(model, density=0.1)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=1.0, fused=True)
    pruner.follow(optimizer)
    torch.nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    scores = [mask.scores.detach().clone() for mask in pruner.masks]
    for skipped in (True, False):
        optimizer.found_inf = torch.tensor([float(skipped)])
        optimizer.step()
        assert pruner.schedule.step == int(not skipped)
        same = [torch.equal(s, m.scores) for s, m in zip(scores, pruner.masks, strict=True)]
        assert all(same) if skipped else not any(same)
