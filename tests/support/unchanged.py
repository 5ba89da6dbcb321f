"""A snapshot of a model, and a check that nothing of it has changed."""

import torch


def snapshot(model):
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [
            (name, type(layer), layer.training, set(vars(layer)))
            for name, layer in model.named_modules()
        ],
        [(name, id(p), p.requires_grad) for name, p in model.named_parameters()],
    )


def check_unchanged(model, before):
    state, layers, parameters = before
    now = snapshot(model)
    assert now[1:] == (layers, parameters)
    assert list(now[0]) == list(state)
    assert all(torch.equal(v.nan_to_num(7), state[k].nan_to_num(7)) for k, v in now[0].items())
