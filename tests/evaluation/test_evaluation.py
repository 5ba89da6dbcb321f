import json

import pytest
import torch
from threshold import Threshold, batches, down, up
from torch import nn

from robust_plugin import (
    HydraPruner,
    MagnitudePruner,
    Report,
    ThreatModel,
    evaluate,
    pgd,
    wilson_interval,
)


@pytest.mark.parametrize("size", [1, 25, 90])
def test_flags_of_every_point(points, size):
    x, y = points
    threat = ThreatModel("Linf", eps=0.1)
    model = Threshold().eval()
    report = evaluate(model, batches(x, y, size), attacks=[down(threat), up], threat=threat)
    value = x[:, 0]
    clean = [(v > 0.5) == bool(t) for v, t in zip(value.tolist(), y.tolist(), strict=True)]
    lower = [
        c and (max(v - torch.tensor(0.1), torch.tensor(0.0)) > 0.5) == bool(t)
        for c, v, t in zip(clean, value, y.tolist(), strict=True)
    ]
    upper = [
        c and (min(v + torch.tensor(0.1), torch.tensor(1.0)) > 0.5) == bool(t)
        for c, v, t in zip(clean, value, y.tolist(), strict=True)
    ]
    assert list(report.flags["clean"]) == clean
    assert [bool(f) for f in lower] == list(report.flags["down"])
    assert [bool(f) for f in upper] == list(report.flags["up"])
    assert list(report.worst) == [bool(a and b) for a, b in zip(lower, upper, strict=True)]
    assert report.rows == ("clean", "down", "up") and report.n == 90
    assert report.labels == tuple(y.tolist()) and report.findings == ()
    assert report.accuracy() == sum(clean) / 90
    assert report.accuracy("worst case") == sum(report.worst) / 90
    assert report.interval("down") == wilson_interval(sum(report.flags["down"]), 90)
    for label in (0, 1):
        own = [f for f, t in zip(clean, y.tolist(), strict=True) if t == label]
        assert report.per_class()[label] == sum(own) / len(own)
    assert report.balanced() == pytest.approx(sum(report.per_class().values()) / 2)
    assert 0 < report.accuracy("worst case") < report.accuracy("down") < report.accuracy() < 1


def test_deterministic_and_everything_restored(cnn, batch, threat):
    x, y = batch
    model = cnn()
    model[1].eval()
    model[3].weight.requires_grad_(False)
    model[6].weight.grad = torch.ones_like(model[6].weight)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    attacks = [pgd(threat, steps=3, restarts=2), pgd(threat, steps=3, loss="margin")]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = evaluate(model, batches(x, y, 5), attacks=attacks)
    assert torch.equal(torch.get_rng_state(), before)
    assert evaluate(model, batches(x, y, 5), attacks=attacks) == first
    assert first.rows == ("clean", "PGD-3x2", "PGD-3 margin")
    assert model.training and not model[1].training and model[0].training
    assert not model[3].weight.requires_grad and model[0].weight.requires_grad
    assert model[0].weight.grad is None and bool((model[6].weight.grad == 1).all())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())

    def broken(model, x, y):
        raise KeyError("inside")

    y = model.eval()(x).argmax(1)  # right clean, so that the attack has something to see
    model.train()
    model[1].eval()
    with pytest.raises(KeyError):
        evaluate(model, batches(x, y), attacks=[broken], threat=threat)
    assert model.training and not model[1].training and not model[3].weight.requires_grad
    assert torch.equal(torch.get_rng_state(), before)
    with torch.inference_mode():
        assert evaluate(model, batches(*batch, 5), attacks=attacks) == first


def test_a_pruned_model_before_and_after_finalizing(cnn, batch, threat, train):
    model = cnn()
    pruner = HydraPruner(model, 0.1)
    train(pruner, "prune")
    train(pruner, "finetune", steps=10)
    attached = evaluate(model, [batch], attacks=[pgd(threat, steps=2)])
    assert len(list(model.parameters())) == 11  # still attached: scores and all
    pruner.finalize()
    assert evaluate(model, [batch], attacks=[pgd(threat, steps=2)]) == attached


def test_bad_input(cnn, batch, threat):
    x, y = batch
    model = cnn()
    attack = pgd(threat, steps=1)
    plain = lambda model, x, y: x  # noqa: E731
    right = model.eval()(x).argmax(1)
    for loader, options, kind, says in [
        ([], {}, ValueError, "loader is empty"),
        ([(x, y + 10)], {}, ValueError, "legal: integers 0 to 9"),
        ([(x, y - 3)], {}, ValueError, "labels are torch.int64 from -3"),
        ([(x * 2, right)], {"attacks": [attack]}, ValueError, "outside the threat model's"),
        (
            [(x * 2, (model(x * 2).argmax(1) + 1) % 10)],
            {"attacks": [attack]},
            ValueError,
            "outside the threat model's",
        ),
        ([(x, right)], {"attacks": [plain]}, ValueError, "says no threat model; give evaluate"),
        ([(x, y)], {"attacks": [attack, attack]}, ValueError, "two rows would be called 'PGD-1'"),
        (
            [(x, right)],
            {"attacks": [lambda m, x, y: x + 1], "threat": threat},
            ValueError,
            "outside the threat model",
        ),
        (
            [(x, right)],
            {"attacks": [lambda m, x, y: x * torch.nan], "threat": threat},
            ValueError,
            "NaN or infinite",
        ),
        ([(x, right)], {"attacks": [lambda m, x, y: x[:1]], "threat": threat}, ValueError, "shape"),
    ]:
        with pytest.raises(kind, match=says):
            evaluate(model, loader, **options)
    for wrong, kind, says in [
        (lambda z: (z,), TypeError, "returned a tuple"),
        (lambda z: z * torch.nan, ValueError, "not finite"),
        (lambda z: z[:, :5], ValueError, "legal: integers 0 to 4"),
    ]:

        class Returns(nn.Module):
            def forward(self, x, wrong=wrong):
                return wrong(model(x))

        with pytest.raises(kind, match=says):
            evaluate(Returns(), [batch])


def test_a_deeper_prune_is_not_mistaken_for_the_dense_model(cnn, batch):
    model = cnn()
    dense = evaluate(model, [batch])
    MagnitudePruner(model, 0.001)
    assert evaluate(model, [batch]).labels == dense.labels
    assert model[6].weight.count_nonzero() == 2


def test_adversarial_images_are_written(points, tmp_path):
    x, y = points
    threat = ThreatModel("Linf", eps=0.1)
    path = tmp_path / "deep" / "images.pt"
    attack = pgd(threat, steps=5, keep="best")
    report = evaluate(Threshold(), batches(x, y), attacks=[attack], adversarial=path)
    content = torch.load(path, weights_only=True)
    assert set(content) == {"inputs", "labels", "PGD-5"}
    assert torch.equal(content["inputs"], x) and torch.equal(content["labels"], y)
    model = Threshold().eval()
    withstood = (model(content["PGD-5"]).argmax(1) == y) & (model(x).argmax(1) == y)
    assert tuple(withstood.tolist()) == report.flags["PGD-5"]
    assert list(path.parent.iterdir()) == [path]


def test_what_a_stranger_typed(points, tmp_path):
    x, y = points
    threat = ThreatModel("Linf", eps=0.1)
    attack = down(threat)
    named = lambda model, x, y: x  # noqa: E731
    named.name, named.threat = "labels", threat

    class Writes:
        name = "writes"

        def __init__(self):
            self.threat = threat

        def __call__(self, model, x, y):
            model.inner[0].weight.data.add_(1)
            return x

    for call, kind, says in [
        (lambda: evaluate(lambda x: x, [(x, y)]), TypeError, "give an nn.Module"),
        (lambda: evaluate(Threshold(), [(x * torch.nan, y)]), ValueError, "inputs hold NaN"),
        (lambda: evaluate(Threshold(), [(x, y.tolist())]), TypeError, "labels are a list"),
        (lambda: evaluate(Threshold(), [(x, y)], attacks=["pgd"]), TypeError, "'pgd' is no attack"),
        (lambda: evaluate(Threshold(), [(x, y)], attacks=[named]), ValueError, "called 'labels'"),
        (lambda: evaluate(Threshold(), [(x, y)], attacks=[Writes()]), ValueError, "has changed"),
        (
            lambda: evaluate(Threshold(), [(x, y)], attacks=[attack], adversarial=tmp_path),
            ValueError,
            "a folder; give the name of a file",
        ),
    ]:
        with pytest.raises(kind, match=says):
            call()
    for limit in (-3, 0, 2.5):
        with pytest.raises(ValueError, match=f"limit of down is {limit}; legal: at least 1"):
            evaluate(Threshold(), [(x, y)], attacks=[attack], limits={"down": limit})
    report = evaluate(Threshold(), [(x, y.to(torch.uint8))], attacks=[attack])
    content = json.loads(report.to_json())
    for damaged in (
        {**content, "labels": [1, 2]},
        {**content, "flags": {"clean": "9" * 90}},
        {key: value for key, value in content.items() if key != "certified"},
        3,
    ):
        with pytest.raises(ValueError, match="damaged|no report of this version"):
            Report.from_json(json.dumps(damaged))


def test_a_detached_network_is_named(cnn, batch, threat):
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = cnn()

        def forward(self, x):
            return self.inner(x.detach())

    model, (x, _) = Detached().eval(), batch
    y = model(x).argmax(1)
    found = evaluate(model, [(x, y)]).findings
    assert any("do not depend on the inputs by autograd" in text for text in found)
    with pytest.raises(ValueError, match="a detached layer.*no attack by gradients can run"):
        evaluate(model, [(x, y)], attacks=[pgd(threat)])
