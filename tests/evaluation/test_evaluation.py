import json
import random

import pytest
import scipy.stats
import torch
from torch import nn

from robust_plugin import (
    IBP,
    HydraPruner,
    MagnitudePruner,
    Report,
    ThreatModel,
    evaluate,
    mcnemar,
    pgd,
    wilson_interval,
)


def test_wilson_equals_scipy_and_the_quadratic():
    draw = random.Random(0)
    cases = [(0, 1), (1, 1), (0, 1000), (1000, 1000), (4500, 10_000)]
    cases += [(draw.randint(0, n), n) for n in (draw.randint(1, 3000) for _ in range(100))]
    for k, n in cases:
        low, high = wilson_interval(k, n)
        wanted = scipy.stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
        for end in (low, high):  # where |p - end| = z sqrt(end (1 - end) / n)
            assert (k / n - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / n, abs=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for n in range(1, 200):
        assert wilson_interval(0, n)[0] == 0.0 and wilson_interval(n, n)[1] == 1.0


def test_mcnemar_equals_scipy():
    draw = random.Random(0)
    for _ in range(60):
        n, share = draw.randint(1, 400), draw.random()
        first = [draw.random() < 0.7 for _ in range(n)]
        second = [a if draw.random() < share else draw.random() < 0.5 for a in first]
        b = sum(x and not y for x, y in zip(first, second, strict=True))
        c = sum(y and not x for x, y in zip(first, second, strict=True))
        wanted = scipy.stats.binomtest(b, b + c).pvalue if b + c else 1.0
        assert mcnemar(first, second) == pytest.approx(wanted, rel=1e-9)
        assert mcnemar(second, first) == mcnemar(first, second)
    assert mcnemar([True] * 5000, [False] * 5000) == pytest.approx(0.0, abs=1e-300)
    with pytest.raises(ValueError, match="2 points against 3"):
        mcnemar([True] * 2, [True] * 3)


class Threshold(nn.Module):
    """Two classes: whether the first pixel exceeds one half."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))

    def forward(self, x):
        self.inner(self.norm(x))
        return torch.stack([0.5 - x[:, 0], x[:, 0] - 0.5], 1) * 10


@pytest.fixture
def points():
    x = torch.rand(90, 4)
    y = (x[:, 0] > 0.5).long()
    y[::7] = 1 - y[::7]  # some are wrong clean
    return x, y


def batches(x, y, size=25):
    return list(zip(x.split(size), y.split(size), strict=True))


def down(threat):
    def down(model, x, y):
        return (x - 0.1).clamp(0, 1)

    down.threat = threat
    return down


def up(model, x, y):
    return (x + 0.1).clamp(0, 1)


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


def test_attacks_see_only_points_that_are_right_clean(points):
    x, y = points
    threat, seen = ThreatModel("Linf", eps=0.1), []

    def look(model, x, y):
        assert not model.training and torch.is_grad_enabled()
        seen.append(len(x))
        assert bool((model(x).argmax(1) == y).all())
        return x

    report = evaluate(Threshold(), batches(x, y), attacks=[look], threat=threat)
    assert sum(seen) == sum(report.flags["clean"])
    assert report.flags["look"] == report.flags["clean"]


def test_limits(points):
    x, y = points
    threat, seen = ThreatModel("Linf", eps=0.1), []
    counting = lambda model, x, y: seen.append(len(x)) or x  # noqa: E731
    counting.name = "few"
    report = evaluate(
        Threshold(),
        batches(x, y),
        attacks=[down(threat), counting],
        threat=threat,
        limits={"few": 40},
    )
    assert len(report.flags["few"]) == 40 and len(report.flags["down"]) == 90
    assert report.flags["few"] == report.flags["clean"][:40]
    assert sum(seen) == sum(report.flags["clean"][:40])
    assert len(report.worst) == 40 and "n=40" in str(report) and "n=90" in str(report)
    with pytest.raises(ValueError, match="limits name .'many'.; the rows are .'few'."):
        evaluate(Threshold(), batches(x, y), attacks=[counting], threat=threat, limits={"many": 1})


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


def test_a_model_that_is_random_in_evaluation_mode_is_refused(batch):
    class Noisy(nn.Module):
        def __init__(self, p):
            super().__init__()
            self.linear, self.p = nn.Linear(64, 10), p

        def forward(self, x):
            return self.linear(nn.functional.dropout(x.flatten(1), self.p, training=True))

    with pytest.raises(ValueError, match="different logits for the same input in evaluation mode"):
        evaluate(Noisy(0.5), [batch])
    evaluate(Noisy(0.0), [batch])


def test_report_survives_json(points):
    x, y = points
    threat = ThreatModel("Linf", eps=0.1)
    for attacks in ([], [up], [up, down(threat)]):
        report = evaluate(
            Threshold(),
            batches(x, y),
            attacks=attacks,
            threat=threat,
            limits={"up": 30} if attacks else None,
        )
        again = Report.from_json(report.to_json())
        assert again == report and str(again) == str(report)
        content = json.loads(report.to_json())
        assert content["clean_acc"] == pytest.approx(100 * report.accuracy())
        assert content["autoattack_acc"] is None
        if attacks:
            assert content["worst_case_acc"] == pytest.approx(100 * report.accuracy("worst case"))
            assert content["threat"] == "Linf eps=0.1"
    named = Report((0, 1), {"clean": (True, True), "AutoAttack": (True, False)})
    assert json.loads(named.to_json())["autoattack_acc"] == 50.0


def test_compare_is_mcnemar_on_the_same_points(cnn, batch, threat):
    x, y = batch
    models = [cnn(seed).eval() for seed in (0, 1)]
    y = models[0](x).argmax(1)
    reports = [evaluate(m, [(x, y)], attacks=[pgd(threat, steps=2)]) for m in models]
    for row in ("clean", "PGD-2", "worst case"):
        a, b = (r.worst if row == "worst case" else r.flags[row] for r in reports)
        assert reports[0].compare(reports[1], row) == mcnemar(a, b)
    assert reports[0].compare(reports[1]) < 0.05
    with pytest.raises(ValueError, match="not of the same test points"):
        reports[0].compare(evaluate(models[0], [(x, 1 - y.clamp(0, 1))]))
    with pytest.raises(ValueError, match="row is 'APGD'; legal: .'clean', 'PGD-2', 'worst case'."):
        reports[0].accuracy("APGD")


def test_table_by_hand():
    report = Report(
        (0, 0, 0, 1),
        {
            "clean": (True, True, False, True),
            "a": (True, False, False, True),
            "b": (False, False, False, True),
        },
        {"a": ThreatModel("L2", 1.0), "b": ThreatModel("L2", 1.0)},
    )
    low, high = wilson_interval(3, 4)
    lines = str(report).splitlines()
    assert lines[0] == "threat model: L2 eps=1"
    assert lines[1].split() == [
        "clean",
        "75.0",
        f"[{100 * low:.1f},",
        f"{100 * high:.1f}]",
        "n=4",
        "balanced",
        "83.3",
    ]
    assert lines[-1].startswith("worst case   25.0 ")
    assert report.per_class("a") == {0: 1 / 3, 1: 1.0}


def test_of_several_threat_models_each_row_names_its_own():
    report = Report(
        (0, 1),
        {"clean": (True, True), "a": (True, False), "b": (False, True)},
        {"a": ThreatModel("L2", 1.0), "b": ThreatModel("Linf", 8 / 255)},
        certified=(True, False),
        certified_threat=ThreatModel("L2", 0.5),
    )
    lines = str(report).splitlines()
    assert lines[0] == "threat model: L2 eps=0.5; L2 eps=1; Linf eps=8/255"
    starts = [
        "clean  ",
        "a, L2 eps=1  ",
        "b, Linf eps=8/255  ",
        "worst case",
        "certified, L2 eps=0.5",
    ]
    assert all(line.startswith(start) for line, start in zip(lines[1:], starts, strict=True))


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


def test_reports_of_other_points_or_threats_are_not_compared(cnn, batch):
    x, y = batch
    model = cnn().eval()
    linf = evaluate(model, [batch], attacks=[pgd(ThreatModel("Linf", 0.1), steps=1)])
    l2 = evaluate(model, [batch], attacks=[pgd(ThreatModel("L2", 0.1), steps=1)])
    flipped = evaluate(model, [(x.flip(-1), y)], attacks=[pgd(ThreatModel("Linf", 0.1), steps=1)])
    assert linf.compare(l2) == 1
    with pytest.raises(ValueError, match="is of Linf eps=0.1, the other's of L2 eps=0.1"):
        linf.compare(l2, "PGD-1")
    with pytest.raises(ValueError, match="not of the same test points"):
        linf.compare(flipped)
    with pytest.raises(TypeError, match="give a Report"):
        linf.compare(None)


def test_bad_batches_are_named(cnn, batch):
    x, y = batch
    model = cnn()
    for bad, error, says in (
        ((x, y, y), TypeError, "legal: batches"),
        (x, TypeError, "the loader gives a Tensor"),
        (((255 * x).byte(), y), ValueError, "inputs are torch.uint8"),
        ((x[:0], y[:0]), ValueError, "at least one point"),
    ):
        with pytest.raises(error, match=says):
            evaluate(model, [bad])
    with pytest.raises(TypeError, match="give a list of attacks"):
        evaluate(model, [batch], attacks=pgd(ThreatModel("Linf", 0.1)))


def test_a_worst_case_of_fewer_points_says_so(cnn, batch):
    threat = ThreatModel("Linf", 0.1)
    attacks = [pgd(threat, steps=1), pgd(threat, steps=2)]
    report = evaluate(cnn(), [batch], attacks=attacks, limits={"PGD-2": 5})
    assert "worst case of the first 5" in str(report)
    assert "worst case of" not in str(evaluate(cnn(), [batch], attacks=attacks))


class Certifier:
    """Proves what a closed form proves: the first pixel is farther than eps from one half."""

    def __init__(self, threat, slack=0.0):
        self.threat, self.slack = threat, slack

    def __call__(self, model, x, y):
        return (x[:, 0] - 0.5).abs() > self.threat.eps - self.slack


def test_attacks_by_names_of_ones_own(points):
    x, y = points
    balls = {f"down, {eps}": pgd(ThreatModel("Linf", eps), steps=2) for eps in (0.05, 0.1)}
    report = evaluate(Threshold(), batches(x, y), attacks=balls)
    assert report.rows == ("clean", "down, 0.05", "down, 0.1")
    assert [report.threats[row].eps for row in balls] == [0.05, 0.1]
    with pytest.raises(ValueError, match="called 'PGD-2'; give attacks={name: attack}"):
        evaluate(Threshold(), batches(x, y), attacks=list(balls.values()))
    with pytest.raises(ValueError, match="two rows would be called 'clean'"):
        evaluate(Threshold(), batches(x, y), attacks={"clean": pgd(ThreatModel("Linf", 0.1))})


def test_a_certifier_stands_beside_the_attacks(points):
    x, y = points
    threat = ThreatModel("Linf", eps=0.1)
    report = evaluate(
        Threshold(), batches(x, y), attacks=[down(threat)], certifier=Certifier(threat)
    )
    assert report.certified is not None and 0 < report.accuracy("certified") < report.accuracy()
    right = (x[:, 0] > 0.5) == (y == 1)
    assert list(report.certified) == (right & ((x[:, 0] - 0.5).abs() > 0.1)).tolist()
    assert all(a >= b for a, b in zip(report.flags["down"], report.certified, strict=True))
    *_, row, proofs = str(report).splitlines()
    proved, wrong = sum(report.certified), int((~right).sum())
    assert row.startswith("certified ")
    assert proofs == (
        f"proofs: {proved} verified by Certifier, {wrong} misclassified, "
        f"{len(y) - proved - wrong} unknown"
    )
    assert "certified by Certifier" in str(report)
    assert Report.from_json(report.to_json()) == report
    some = evaluate(
        Threshold(), batches(x, y), certifier=Certifier(threat), limits={"certified": 7}
    )
    assert some.certified == report.certified[:7]


def test_a_wrong_certificate_raises(points):
    x, y = points
    threat = ThreatModel("Linf", eps=0.1)
    both = [down(threat), pgd(threat, steps=5)]
    with pytest.raises(ValueError, match=r"point \d+ is certified in Linf eps=0.1 and .* fools it"):
        evaluate(Threshold(), batches(x, y), attacks=both, certifier=Certifier(threat, slack=0.09))
    larger = Certifier(ThreatModel("Linf", eps=0.2), slack=0.19)
    with pytest.raises(ValueError, match="certified in Linf eps=0.2 and .* fools it in Linf eps=0"):
        evaluate(Threshold(), batches(x, y), attacks=both, certifier=larger)
    # Beyond the certified ball it is no contradiction.
    smaller = Certifier(ThreatModel("Linf", eps=0.01))
    evaluate(Threshold(), batches(x, y), attacks=both, certifier=smaller)
    for wrong in (lambda m, x, y: x, lambda m, x, y: torch.tensor(True), lambda m, x, y: True):
        with pytest.raises(TypeError, match="a bool tensor, one a point"):
            evaluate(Threshold(), batches(x, y), certifier=wrong, threat=threat)
    with pytest.raises(ValueError, match="certifier says no threat model"):
        evaluate(Threshold(), batches(x, y), certifier=lambda m, x, y: x[:, 0] > 0)


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


def test_robustbench_fields():
    flags = {"clean": (True, True, False, True), "AutoAttack": (True, False, False, False)}
    ball = {"AutoAttack": ThreatModel("Linf", "8/255")}
    report = Report((0, 1, 0, 1), flags, ball)
    entry = report.robustbench(name="net", dataset="cifar10", architecture="ResNet-18")
    assert entry == {
        "name": "net",
        "dataset": "cifar10",
        "architecture": "ResNet-18",
        "threat_model": "Linf",
        "eps": "8/255",
        "n": 4,
        "clean_acc": "75.00",
        "autoattack_acc": "25.00",
    }
    few = {"clean": (True,) * 4, "AutoAttack": (True,) * 2}
    for wrong in (Report((0,) * 4, {"clean": (True,) * 4}), Report((0,) * 4, few, ball)):
        with pytest.raises(ValueError, match="standard AutoAttack on all points, 4"):
            wrong.robustbench()


def test_reports_are_of_the_same_points_whatever_the_batches(points):
    x, y = points
    threat = ThreatModel("Linf", eps=0.1)
    one, two = (
        evaluate(Threshold(), batch, attacks=[down(threat)]) for batch in ([(x, y)], batches(x, y))
    )
    assert one.compare(two, "down") == 1.0
    # A row is compared with its like, whatever else a report holds.
    more = evaluate(Threshold(), [(x, y)], attacks=[down(threat), pgd(ThreatModel("L2", 0.2))])
    assert one.compare(more, "down") == 1.0
    with pytest.raises(ValueError, match="worst case is of"):
        one.compare(more, "worst case")


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


def test_a_report_keeps_what_made_it(cnn, batch):
    model, (x, y) = cnn().eval(), batch
    box = ThreatModel("Linf", 0.1, low=-1, high=1)

    def mine(model, x, y):
        return x

    attacks = {"mine": mine, "PGD": pgd(box, steps=7, restarts=2)}
    torch.manual_seed(1234)
    report = evaluate(model, [(x, y)], attacks=attacks, threat=box, certifier=IBP(box))
    assert report.attacks == {
        "mine": f"{__name__}.test_a_report_keeps_what_made_it.<locals>.mine",
        "PGD": "PGD(threat=ThreatModel(norm='Linf', eps=0.1, low=-1.0, high=1.0), steps=7, "
        "step_size=0.03571428571428571, loss='ce', start='uniform', restarts=2, keep='last')",
        "certified": "IBP(threat=ThreatModel(norm='Linf', eps=0.1, low=-1.0, high=1.0))",
    }
    assert report.versions["torch"] == torch.__version__ and "robust_plugin" in report.versions
    assert report.seed == 1234
    content = json.loads(report.to_json())
    for key in ("attacks", "versions", "seed", "remarks"):
        assert content[key] == getattr(report, key)
    assert content["threats"]["PGD"] == {"norm": "Linf", "eps": 0.1, "low": -1.0, "high": 1.0}
    assert Report.from_json(report.to_json()) == report
    for key in ("attacks", "versions", "seed", "remarks"):  # a report of an earlier version
        del content[key]
    assert Report.from_json(json.dumps(content)).flags == report.flags
