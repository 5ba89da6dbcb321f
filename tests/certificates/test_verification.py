import time
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from robust_plugin import IBP, ThreatModel, Verification, pgd, verify


@dataclass(frozen=True)
class Claims:
    """A prover that claims the same margin for each point."""

    threat: ThreatModel
    margin: float
    pause: float = 0.0

    def margins(self, model, x, y):
        time.sleep(self.pause * len(x))
        return torch.full((len(x), 10), self.margin).scatter(1, y[:, None], 0.0)

    def __call__(self, model, x, y):
        raise NotImplementedError


@dataclass(frozen=True)
class Counts:
    """Any method, and how many points it was given."""

    method: object
    given: list

    @property
    def threat(self):
        return self.method.threat

    def margins(self, model, x, y):
        self.given.append(len(x))
        return self.method.margins(model, x, y)

    def __call__(self, model, x, y):
        raise NotImplementedError


@pytest.fixture
def sharp(cnn):
    """A network that some of the points are verified, falsified and unknown for."""
    model = cnn(2).eval()
    x = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    y = model(x).argmax(1)
    y[::9] = (y[::9] + 1) % 10
    return model, x, y


def methods(threat):
    attack = pgd(threat, steps=10, loss="margin", keep="best")
    return {"IBP": IBP(threat), "PGD": attack, "IBP again": IBP(threat)}


THREAT = ThreatModel("Linf", eps=0.004)


def test_each_point_gets_the_verdict_of_the_method_that_decides_it(sharp):
    model, x, y = sharp
    found = verify(model, x, y, methods(THREAT), batch_size=25)
    logits = model(x)
    right, ibp = logits.argmax(1) == y, IBP(THREAT)(model, x, y)
    kinds = set(found.verdicts)
    assert kinds == {"verified", "falsified", "misclassified", "unknown"}
    for i, (verdict, method) in enumerate(zip(found.verdicts, found.methods, strict=True)):
        assert (verdict == "misclassified") == (not right[i])
        assert (verdict == "verified") == bool(ibp[i])
        by = {"verified": "IBP", "falsified": "PGD"}
        assert method == by.get(verdict)
        moved = not torch.equal(found.x_adv[i], x[i])
        assert moved == (verdict == "falsified")
    fooled = torch.tensor([v == "falsified" for v in found.verdicts])
    assert (model(found.x_adv[fooled]).argmax(1) != y[fooled]).all()
    assert ((found.x_adv - x).abs().amax((1, 2, 3)) <= THREAT.eps + 1e-6).all()
    margins = IBP(THREAT).margins(model, x, y)
    least = margins.scatter(1, y[:, None], torch.inf).amin(1)
    assert torch.allclose(found.margins[right], least[right], atol=1e-5)
    assert (found.margins[~right] == -torch.inf).all()
    assert found.verified == tuple(v == "verified" for v in found.verdicts)


def test_methods_get_the_undecided_alone_and_the_best_margin_counts(sharp):
    model, x, y = sharp
    given = []
    wide, narrow = Claims(THREAT, -2.0), Claims(THREAT, -1.0)
    some = Counts(IBP(THREAT), given)
    found = verify(model, x, y, {"a": some, "b": Counts(narrow, given), "c": Counts(wide, given)})
    right = int((model(x).argmax(1) == y).sum())
    proved = found.verdicts.count("verified")
    undecided = found.verdicts.count("unknown")
    assert sum(given[0::3]) == right and sum(given[1::3]) == right - proved == undecided
    assert sum(given[2::3]) == undecided
    open_points = torch.tensor([v == "unknown" for v in found.verdicts])
    own = IBP(THREAT).margins(model, x, y).scatter(1, y[:, None], torch.inf).amin(1)
    assert torch.equal(found.margins[open_points], own[open_points].clamp(min=-1.0))


def test_a_counterexample_to_a_proof_raises(sharp):
    model, x, y = sharp
    wrong = {"liar": Claims(THREAT, 1.0), **methods(ThreatModel("Linf", eps=0.004))}
    with pytest.raises(ValueError, match="PGD found a counterexample to point .* margin 1: the"):
        verify(model, x, y, wrong)


def test_nan_is_no_proof_and_no_margin(sharp):
    found = verify(*sharp, {"nan": Claims(THREAT, float("nan"))})
    assert found.share("verified") == 0 and (found.margins == -torch.inf).all()


def test_resumed_equals_uninterrupted(sharp, tmp_path):
    model, x, y = sharp
    whole = verify(model, x, y, methods(THREAT), batch_size=20)

    class StopError(Exception):
        pass

    def stop(progress):
        assert progress.total == 60 and progress.unit == "points"
        if progress.done == 40:
            raise StopError

    with pytest.raises(StopError):
        verify(model, x, y, methods(THREAT), batch_size=20, journal=tmp_path, progress=stop)
    given = []
    begun = {"IBP": IBP(THREAT), **{k: v for k, v in methods(THREAT).items() if k != "IBP"}}
    hook = register_module_forward_hook(lambda m, *_: given.append(1) if m is model else None)
    torch.randn(7)  # the attack's noise is of the seed, not of what was drawn before
    again = verify(model, x, y, begun, batch_size=20, journal=tmp_path)
    first = len(given)
    verify(model, x, y, methods(THREAT), batch_size=20, journal=tmp_path)
    hook.remove()
    # One look whether it is the same network.
    assert first > 1 and len(given) == first + 1
    assert again.verdicts == whole.verdicts and again.methods == whole.methods
    assert torch.equal(again.margins, whole.margins) and torch.equal(again.x_adv, whole.x_adv)
    with pytest.raises(ValueError, match="journal of another evaluation: stages"):
        other = methods(ThreatModel("Linf", eps=0.005))
        verify(model, x, y, other, batch_size=20, journal=tmp_path)
    with pytest.raises(ValueError, match="journal of another evaluation: model"):
        with torch.no_grad():
            model[0].weight += 1
        verify(model, x, y, methods(THREAT), batch_size=20, journal=tmp_path)


def test_a_point_whose_time_is_used_up_stays_unknown(sharp):
    model, x, y = sharp
    slow = {"slow": Claims(THREAT, -1.0, pause=0.01), "IBP": IBP(THREAT)}
    x, y = x[:10], y[:10]
    found = verify(model, x, y, slow, seconds=0.005)
    assert set(found.verdicts) <= {"unknown", "misclassified"}
    assert "verified" in verify(model, x, y, slow, seconds=60).verdicts


def test_the_model_and_the_generator_are_left_as_they_were(sharp):
    model, x, y = sharp
    model.train()
    model[1].eval()
    flags, state = [m.training for m in model.modules()], torch.random.get_rng_state()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    verify(nn.DataParallel(model), x, y, methods(THREAT))
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_plain_function_is_held_to_the_ball(sharp):
    model, x, y = sharp
    with pytest.raises(ValueError, match="moved a point by"):
        verify(model, x, y, {"IBP": IBP(THREAT), "far": lambda m, x, y: (x + 0.1).clamp(0, 1)})
    found = verify(model, x, y, {"IBP": IBP(THREAT), "none": lambda m, x, y: x})
    assert "falsified" not in found.verdicts


def test_the_table():
    found = Verification(
        ("verified", "falsified", "verified", "unknown"),
        ("IBP", "PGD", "CROWN", None),
        torch.zeros(4),
        torch.zeros(4, 1),
        THREAT,
    )
    lines = str(found).splitlines()
    assert lines[0] == "threat model: Linf eps=0.004"
    assert [line.split() for line in lines[1:5]] == [
        ["verified", "by", "IBP", "1"],
        ["verified", "by", "CROWN", "1"],
        ["falsified", "by", "PGD", "1"],
        ["unknown", "1"],
    ]
    assert lines[5] == "vra 50.0 [15.0, 85.0]  n=4"
    assert found.share("unknown") == 0.25 and found.interval("unknown")[0] < 0.1


def test_bad_input(sharp):
    model, x, y = sharp
    for given, message in (
        ({}, "the methods have no threat model"),
        ({"a": lambda m, x, y: x}, "no threat model"),
        ({"a": IBP(THREAT), "b": IBP(ThreatModel("Linf", eps=0.1))}, "of one threat model"),
    ):
        with pytest.raises(ValueError, match=message):
            verify(model, x, y, given)
    with pytest.raises(ValueError, match="labels are"):
        verify(model, x, y + 10, methods(THREAT))
    with pytest.raises(ValueError, match="outside the threat model's"):
        verify(model, x + 1, y, methods(THREAT))
    with pytest.raises(ValueError, match="the batch is empty"):
        verify(model, x[:0], y[:0], methods(THREAT))
    with pytest.raises(ValueError, match="batch_size is 0"):
        verify(model, x, y, methods(THREAT), batch_size=0)
