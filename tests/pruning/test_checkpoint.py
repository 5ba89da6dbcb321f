import json

import pytest
import torch
from forked import Forked
from safetensors.torch import save_file
from torch.nn import functional as F

from robust_plugin import MagnitudePruner, ThreatModel, pgd
from robust_plugin.export.compressed import load_compressed
from robust_plugin.pruning import checkpoint
from robust_plugin.runtime.files import write_text

# A few steps do not take the hinge to its target, and it says so.
pytestmark = pytest.mark.filterwarnings("ignore:the rates ended at")

KINDS = ["hydra", "rates", "held", "hinge"]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
}
ATTACK = pgd(ThreatModel("Linf", eps=0.1), steps=2)


def steps(model, pruner, optimizer, n):
    """Batches and attack noise come from the global generator."""
    for _ in range(n):
        x, y = torch.rand(8, 1, 8, 8), torch.randint(10, (8,))
        loss = F.cross_entropy(model(ATTACK(model, x, y)), y) + pruner.budget_penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def final(model, pruner, optimizer):
    state = dict(model.state_dict())
    state |= {f"mask {i}": mask.mask for i, mask in enumerate(pruner.masks)}
    for i, values in optimizer.state_dict()["state"].items():
        state |= {f"{i} {key}": v for key, v in values.items() if isinstance(v, torch.Tensor)}
    return {name: tensor.clone() for name, tensor in state.items()}, pruner.state_dict()


def check_equal(one, other):
    assert one[0].keys() == other[0].keys()
    for name, tensor in one[0].items():
        assert torch.equal(tensor, other[0][name]), name
    assert one[1] == other[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stop", [1, 4, 9])
def test_prune_phase_continues_to_the_bit(cnn, attach, tmp_path, kind, optimizer, stop):
    def begin(seed):
        model = cnn(seed)
        pruner = attach(kind, model, 0.03)
        made = OPTIMIZERS[optimizer](pruner.set_phase("prune"))
        pruner.follow(made, epochs=3, steps_per_epoch=4)
        return model, pruner, made

    torch.manual_seed(0)
    whole = begin(0)
    steps(*whole, stop)
    checkpoint.save(
        tmp_path / "last", model=whole[0], pruner=whole[1], optimizer=whole[2], meta={"epoch": 2}
    )
    steps(*whole, 12 - stop)

    torch.manual_seed(99)
    resumed = begin(5)  # other weights, other scores
    steps(*resumed, 2)
    saved = checkpoint.load(tmp_path / "last")
    assert saved.meta == {"epoch": 2}
    saved.restore(model=resumed[0], pruner=resumed[1], optimizer=resumed[2], rng=True)
    assert resumed[1].steps.step == stop
    steps(*resumed, 12 - stop)
    check_equal(final(*whole), final(*resumed))
    # ... and ends the phase alike.
    for pruner in (whole[1], resumed[1]):
        pruner.set_phase("finetune")
        assert pruner.kept == pruner.budget.total
    check_equal(final(*whole), final(*resumed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_finetune_phase_continues_to_the_bit(cnn, attach, tmp_path, kind, optimizer):
    model = cnn()
    pruner = attach(kind, model, 0.05)
    made = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(made, epochs=1, steps_per_epoch=3)
    steps(model, pruner, made, 3)
    made = OPTIMIZERS[optimizer](pruner.set_phase("finetune"))
    steps(model, pruner, made, 3)
    checkpoint.save(tmp_path / "last", model=model, pruner=pruner, optimizer=made)
    steps(model, pruner, made, 4)

    other = cnn(5)
    resumed = attach(kind, other, 0.05)
    saved = checkpoint.load(tmp_path / "last")
    saved.restore(model=other, pruner=resumed)
    assert resumed.phase == "finetune"
    again = OPTIMIZERS[optimizer](resumed.set_phase("finetune"))
    saved.restore(optimizer=again, rng=True)
    steps(other, resumed, again, 4)
    check_equal(final(model, pruner, made), final(other, resumed, again))
    pruner.finalize(), resumed.finalize()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert sum(int(other[i].weight.count_nonzero()) for i in (0, 3, 6)) == pruner.budget.total


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rates", ["uniform", "erk"])
def test_iterative_magnitude_continues_to_the_bit(cnn, tmp_path, optimizer, rates):
    model = cnn()
    pruner = MagnitudePruner(model, 0.5, rates=rates)
    made = OPTIMIZERS[optimizer](pruner.set_phase("finetune"))
    steps(model, pruner, made, 2)
    pruner.set_density(0.2)
    steps(model, pruner, made, 2)
    checkpoint.save(tmp_path / "last", model=model, pruner=pruner, optimizer=made)
    steps(model, pruner, made, 2)
    pruner.set_density(0.05)
    steps(model, pruner, made, 2)

    other = cnn(5)
    resumed = MagnitudePruner(other, 0.5, rates=rates)
    again = OPTIMIZERS[optimizer](resumed.set_phase("finetune"))
    checkpoint.load(tmp_path / "last").restore(
        model=other, pruner=resumed, optimizer=again, rng=True
    )
    assert resumed.kept == resumed.budget.total and resumed.budget.density == 0.2
    steps(other, resumed, again, 2)
    resumed.set_density(0.05)
    steps(other, resumed, again, 2)
    check_equal(final(model, pruner, made), final(other, resumed, again))


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    for read in (checkpoint.load, load_compressed):
        with pytest.raises(ValueError, match="empty is truncated or no safetensors file"):
            read(tmp_path / "empty")


def test_plain_model_and_tied_weights(cnn, tmp_path):
    model = cnn()
    model[1].running_mean.normal_()
    made = torch.optim.SGD(model.parameters(), lr=0.1)  # no state yet, momentum none
    checkpoint.save(tmp_path / "a", model=model, optimizer=made)
    other = cnn(4)
    saved = checkpoint.load(tmp_path / "a")
    saved.restore(model=other, optimizer=torch.optim.SGD(other.parameters(), lr=0.7))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in other.state_dict().items())
    tied = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Linear(5, 5))
    tied[1].weight = tied[0].weight
    MagnitudePruner(tied, 0.5)
    checkpoint.save(tmp_path / "b", model=tied)
    checkpoint.load(tmp_path / "b").restore(model=tied)
    assert tied[0]._parameters["weight"] is tied[1]._parameters["weight"]


def test_random_state_comes_back(cnn, tmp_path):
    checkpoint.save(tmp_path / "a", model=cnn())
    wanted = torch.rand(3)
    saved = checkpoint.load(tmp_path / "a")
    state = torch.get_rng_state()
    saved.restore(rng=False)
    assert torch.equal(torch.get_rng_state(), state)
    saved.restore(rng=True)
    assert torch.equal(torch.rand(3), wanted)


def unchanged(build, act, says):
    """The act raises and leaves model and pruner as they were."""
    model, pruner = build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = pruner.state_dict() if pruner is not None else None
    with pytest.raises(ValueError, match=says):
        act(model, pruner)
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert pruner is None or pruner.state_dict() == state


def test_checkpoints_of_something_else(cnn, attach, tmp_path):
    path = tmp_path / "a"
    model = cnn()
    pruner = attach("held", model, 0.1)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    checkpoint.save(path, model=model, pruner=pruner, optimizer=optimizer)
    saved = checkpoint.load(path)

    def restore(model, pruner):
        saved.restore(model=model, pruner=pruner)

    def wider():
        wide = torch.nn.Sequential(*list(cnn(2))[:-1], torch.nn.Linear(128, 11))
        return wide, attach("held", wide, 0.1)

    def of(kind, density=0.1, **options):
        def build():
            model = cnn(2)
            return model, attach(kind, model, density, **options)

        return build

    unchanged(wider, restore, "is of another model: 6.bias is .10,. in the file and .11,. here")
    unchanged(lambda: (cnn(2), None), restore, "of another model: .*and absent here")
    unchanged(of("hydra"), restore, "of another model: .*rate is .*and absent here")
    unchanged(of("held", 0.2), restore, "density was 0.1, here 0.2")
    unchanged(of("hinge"), restore, "control was held, here hinge")
    unchanged(of("held", exclude=["6"]), restore, "of another model: 6")
    checkpoint.save(tmp_path / "plain", model=cnn())
    unchanged(
        of("held"),
        lambda m, p: checkpoint.load(tmp_path / "plain").restore(pruner=p),
        "holds no pruner",
    )

    def other_optimizer(model, pruner):
        saved.restore(
            model=model, pruner=pruner, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)
        )

    unchanged(of("held"), other_optimizer, r"holds an optimizer of \[6, 2\] parameters")
    unchanged(
        of("held"),
        lambda m, p: checkpoint.load(tmp_path / "plain").restore(
            optimizer=torch.optim.SGD(m.parameters(), lr=0.1)
        ),
        "optimizer",
    )


def test_missing_truncated_or_foreign_files(cnn, tmp_path):
    with pytest.raises(ValueError, match="there is no checkpoint at .*nowhere"):
        checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="there is no checkpoint at"):
        checkpoint.load(tmp_path)
    path = tmp_path / "whole"
    model = cnn()
    checkpoint.save(path, model=model, pruner=MagnitudePruner(model, 0.1))
    content = path.read_bytes()
    cut = tmp_path / "cut"
    lengths = {0, 1, 7, 8, 9, 100, len(content) - 1} | set(range(0, len(content), 997))
    for length in sorted(lengths):
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match="cut is truncated or no safetensors file"):
            checkpoint.load(cut)
    cut.write_bytes(b"not a checkpoint at all, just text" * 10)
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        checkpoint.load(cut)
    torch.save(model[1].state_dict(), cut)
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        checkpoint.load(cut)
    save_file({"w": torch.ones(2)}, cut)
    with pytest.raises(ValueError, match="no checkpoint of robust_plugin"):
        checkpoint.load(cut)
    save_file({"w": torch.ones(2)}, cut, metadata={"content": "{not json"})
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        checkpoint.load(cut)
    checkpoint.load(path)


def test_an_interrupted_write_leaves_the_old_file(cnn, tmp_path, monkeypatch):
    path = tmp_path / "a"
    checkpoint.save(path, model=cnn(), meta={"step": 1})
    for name in ("save_file", "os.replace"):
        with monkeypatch.context() as patch:

            def fail(*_, **__):
                raise OSError("disk full")

            patch.setattr(f"robust_plugin.runtime.files.{name}", fail)
            with pytest.raises(OSError, match="disk full"):
                checkpoint.save(path, model=cnn(3), meta={"step": 2})
    assert checkpoint.load(path).meta == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    with pytest.raises((TypeError, ValueError)):
        checkpoint.save(path, model=cnn(), meta={"set": {1}})
    with pytest.raises(ValueError):
        checkpoint.save(path, model=cnn(), meta={"loss": float("nan")})
    assert checkpoint.load(path).meta == {"step": 1}


def save_again_and_again(path):
    model = torch.nn.Linear(600, 600)
    for step in range(10000):
        checkpoint.save(path, model=model, meta={"step": step})


def test_killed_while_writing(tmp_path):
    """A process killed again and again leaves a file that loads, or none."""
    path = tmp_path / "a"
    process = Forked(save_again_and_again, path)
    while not path.exists():
        assert process.poll() is None
    process.kill()
    process.wait()
    assert checkpoint.load(path).meta["step"] >= 0


def test_no_pickle_inside(cnn, attach, tmp_path):
    model = cnn()
    pruner = attach("hinge", model, 0.1)
    optimizer = torch.optim.Adam(pruner.set_phase("prune"))
    checkpoint.save(tmp_path / "a", model=model, pruner=pruner, optimizer=optimizer)
    content = (tmp_path / "a").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    inner = json.loads(header["__metadata__"]["content"])
    assert inner["pruner"]["density"] == 0.1 and inner["pruner"]["phase"] == "prune"
    assert b"\x80\x04" not in content[8 : 8 + size]


def test_text_is_written_atomically(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_json_cannot_hold_is_named_and_nothing_written(tmp_path, cnn):
    model = cnn()
    adam = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1))
    for options in (
        {"meta": {"a": float("nan")}},
        {"meta": {"a": torch.ones(1)}},
        {"optimizer": adam},
    ):
        with pytest.raises(ValueError, match="have to be finite numbers"):
            checkpoint.save(tmp_path / "c.safetensors", model=model, **options)
    with pytest.raises(ValueError, match="there is no folder"):
        checkpoint.save(tmp_path / "absent" / "c.safetensors", model=model)
    assert not list(tmp_path.iterdir())
