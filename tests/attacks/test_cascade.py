"""A cascade's verdicts depend on its arguments alone, however often and wherever it ran."""

import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from robust_plugin import ThreatModel, pgd
from robust_plugin.attacks.cascade import cascade
from robust_plugin.attacks.survivors import AllFooled, Standing
from robust_plugin.runtime.journal import Journal

THREAT = ThreatModel("Linf", 0.1)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def points(n: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return x, network()(x).argmax(1)


ATTACKS = {"weak": pgd(THREAT, steps=1), "strong": pgd(THREAT, steps=5)}


def run(**options) -> torch.Tensor:
    x, y = points()
    return cascade(network(), x, y, ATTACKS, seed=3, batch_size=8, **options)


def test_each_attack_sees_what_withstood_those_before():
    x, y = points()
    seen = []

    def spy(name):
        def attack(model, x, y):
            seen.append((name, len(x)))
            return ATTACKS[name](model, x, y)

        return attack

    model = network()
    x_adv = cascade(model, x, y, {n: spy(n) for n in ATTACKS}, seed=3, batch_size=50)
    torch.manual_seed(3)
    weak = ATTACKS["weak"](model, x, y)
    left = model(weak).argmax(1) == y
    assert seen == [("weak", 50), ("strong", int(left.sum()))] and 0 < left.sum() < 50
    torch.manual_seed(3)
    strong = ATTACKS["strong"](model, x[left], y[left])
    expected = torch.where(left[:, None, None, None], x, weak)
    fooled = model(strong).argmax(1) != y[left]
    expected[left.nonzero().flatten()[fooled]] = strong[fooled]
    assert torch.equal(x_adv, expected)


def test_the_callers_generator_decides_nothing():
    first = run()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(run(), first) and torch.equal(torch.get_rng_state(), state)


def test_killed_anywhere_it_goes_on_and_repeats_at_most_one_batch(tmp_path):
    whole, computed = run(), []

    def stop_after(n):
        def stop(progress):
            if progress.done > n:
                raise KeyboardInterrupt

        return stop

    for n in range(14):
        journal = Journal(tmp_path / "j", {"of": "this"})
        before = len(list((tmp_path / "j").iterdir()))
        try:
            found = run(journal=journal, progress=stop_after(n))
        except KeyboardInterrupt:
            found = None
        computed.append(len(list((tmp_path / "j").iterdir())) - before)
    assert computed == [1] * 14 and found is None
    assert torch.equal(run(journal=Journal(tmp_path / "j", {"of": "this"})), whole)


WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
import time
import torch
from test_cascade import ATTACKS, network, points
from robust_plugin.attacks.cascade import cascade
from robust_plugin.runtime.journal import Journal
torch.set_num_threads(1)
x, y = points()
def slow(attack):
    def counted(model, x, y):
        with open(sys.argv[4], "a") as calls:
            calls.write("x")
        time.sleep(.05)
        return attack(model, x, y)
    return counted

attacks = {name: slow(attack) for name, attack in ATTACKS.items()}
journal = Journal(sys.argv[2], {"of": "this"})
torch.save(cascade(network(), x, y, attacks, seed=3, batch_size=8, journal=journal), sys.argv[3])
"""


def test_kill_9_at_ten_moments(tmp_path):
    here, journal, out = str(Path(__file__).parent), tmp_path / "j", tmp_path / "out.pt"
    command = [sys.executable, "-c", WORKER, here, str(journal), str(out), str(tmp_path / "calls")]
    kills, moments = 0, random.Random(0)
    for _ in range(30):
        finished = len(list(journal.glob("*.safetensors")))
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            now = len(list(journal.glob("*.safetensors")))
            if kills < 10 and now > finished:  # at least one batch further, then at any moment
                time.sleep(moments.uniform(0, 0.08))
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        process.wait(timeout=60)
        if out.exists():
            break
    assert kills == 10 and out.exists()
    assert torch.equal(torch.load(out, weights_only=True), run())
    # Each kill costs one batch at most.
    batches = len(ATTACKS) * math.ceil(len(points()[0]) / 8)
    assert (tmp_path / "calls").stat().st_size <= batches + kills
    assert not [
        p for p in journal.iterdir() if p.suffix not in (".safetensors", ".json", ".partial")
    ]


SHARED = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
import torch.distributed as dist
from test_cascade import run
torch.set_num_threads(1)
place, rank = "file://" + sys.argv[2], int(sys.argv[3])
dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
torch.save(run(), sys.argv[4])
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_give_the_verdicts_of_one(tmp_path):
    here, store = str(Path(__file__).parent), str(tmp_path / "store")
    outs = [tmp_path / f"{rank}.pt" for rank in range(2)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARED, here, store, str(rank), str(outs[rank])],
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    for out in outs:
        assert torch.equal(torch.load(out, weights_only=True), run())


def test_a_journal_that_cannot_be_read_is_named(tmp_path):
    run(journal=Journal(tmp_path / "j", {"of": "this"}))
    (tmp_path / "j" / "weak-00001.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="weak-00001.safetensors is truncated"):
        run(journal=Journal(tmp_path / "j", {"of": "this"}))


def test_standing_computes_only_the_points_that_stand():
    x, y = points(6)
    sizes = []

    def model(points):
        sizes.append(len(points))
        return network()(points)

    wrong = y.clone()
    wrong[0] = (y[0] + 1) % 4  # fooled from the start
    batch = Standing(model, x, wrong, THREAT)
    assert batch.robust.tolist() == [False] + [True] * 5
    assert batch.rest().tolist() == [1, 2, 3, 4, 5]
    clean = batch(x[1:])
    assert torch.equal(clean, network()(x[1:])) and sizes == [6, 5]
    # What misclassifies within the ball is kept, and not computed again.
    logits = clean.clone()
    logits[2] = -logits[2]
    standing = batch.keep(batch.rest(), x[1:] + 0.05, logits)
    assert standing is not None and standing.tolist() == [0, 1, 3, 4]
    assert batch.robust.tolist() == [False, True, True, False, True, True]
    assert torch.equal(batch.x_adv[3], x[3] + 0.05) and torch.equal(batch.x_adv[4], x[4])
    again = batch.predict(x[1:])
    assert sizes == [6, 5, 4]
    assert torch.equal(again[2], clean[2]) and torch.allclose(again, clean, atol=1e-6)
    assert batch.rest().tolist() == [1, 2, 4, 5]
    with pytest.raises(AllFooled):
        batch.keep(batch.rest(), x[batch.rest()] + 0.05, -network()(x[batch.rest()]))
    with pytest.raises(AllFooled):
        batch.rest()
    # Beyond the ball it is not.
    far = Standing(model, x, y, THREAT)
    assert far.keep(far.rest(), x + 0.2, -network()(x)) is not None
    assert bool(far.robust.all()) and torch.equal(far.x_adv, x)


def test_gradients_of_fooled_points_are_zero_and_of_the_others_the_models():
    x, y = points(6)
    batch = Standing(network(), x, y, THREAT)
    logits = network()(x).detach()
    logits[1] = -logits[1]
    batch.keep(batch.rest(), x, logits)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outs = [batch.predict(inputs[0]), network()(inputs[1])]
    ours, theirs = (
        torch.autograd.grad(out.square().sum(), each)[0]
        for out, each in zip(outs, inputs, strict=True)
    )
    assert float(ours[1].abs().max()) == 0
    rest = torch.tensor([0, 2, 3, 4, 5])
    torch.testing.assert_close(ours[rest], theirs[rest])


def test_a_journal_killed_while_it_was_made_can_be_made_again(tmp_path):
    (tmp_path / "j").mkdir()
    (tmp_path / "j" / ".fingerprint.json.7.partial").write_text("{")
    assert torch.equal(run(journal=Journal(tmp_path / "j", {"of": "this"})), run())
    assert (tmp_path / "j" / "fingerprint.json").is_file()


def test_a_journal_that_another_process_begins_at_this_moment(tmp_path, monkeypatch):
    """Its fingerprint comes between two looks at the folder."""
    folder = tmp_path / "j"
    is_file = Path.is_file

    def after_the_other(path):
        if path == folder / "fingerprint.json" and not folder.exists():
            with monkeypatch.context() as back:
                back.setattr(Path, "is_file", is_file)
                Journal(folder, {"of": "this"}).put("first", {"x": torch.ones(1)})
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", after_the_other)
    assert Journal(folder, {"of": "this"}).get("first") is not None
    listed, iterdir = [], Path.iterdir

    def before_it_was_there(path):
        if path == folder and not listed:
            listed.append(path)
            return iter([])
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", before_it_was_there)
    assert Journal(folder, {"of": "this"}).get("first") is not None


def test_a_journal_knows_networks_of_the_same_weights_apart(tmp_path):
    journal = Journal(tmp_path / "j", {"of": "this"})
    logits = torch.randn(5, 3)
    journal.check_answers(logits)
    journal.check_answers(logits * (1 + 1e-6))  # other threads round otherwise
    with pytest.raises(ValueError, match="of the same weights, but its outputs are others"):
        journal.check_answers(logits * 1.01)
    (tmp_path / "j" / "fingerprint.json").write_text("{")
    with pytest.raises(ValueError, match="fingerprint.json is damaged"):
        Journal(tmp_path / "j", {"of": "this"})
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file; give a folder"):
        Journal(tmp_path / "file", {})
