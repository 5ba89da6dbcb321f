"""A cascade's verdicts depend on its arguments alone, however often and wherever it ran."""

import math
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from forked import Forked
from torch import distributed, nn

from robust_plugin import ThreatModel, pgd
from robust_plugin.attacks.cascade import cascade
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


def test_each_attack_gets_the_points_that_no_earlier_one_fooled():
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
        batches, tasks = [], set()

        def stop(progress):
            if progress.task not in tasks:  # the first call for an attack is its start
                assert progress.done == 0
                tasks.add(progress.task)
                return
            batches.append(progress)
            if len(batches) > n:
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


def slow(attack, calls: Path):
    def counted(model, x, y):
        with calls.open("a") as file:
            file.write("x")
        time.sleep(0.05)
        return attack(model, x, y)

    return counted


def slow_run(journal: Path, out: Path, calls: Path) -> None:
    """Run the cascade in a process that is killed, and save its result at the end."""
    x, y = points()
    attacks = {name: slow(attack, calls) for name, attack in ATTACKS.items()}
    kept = Journal(journal, {"of": "this"})
    torch.save(cascade(network(), x, y, attacks, seed=3, batch_size=8, journal=kept), out)


def test_kill_9_at_ten_moments(tmp_path):
    journal, out, calls = (tmp_path / name for name in ("j", "out.pt", "calls"))
    kills, moments = 0, random.Random(0)
    for _ in range(30):
        finished = len(list(journal.glob("*.safetensors")))
        process = Forked(slow_run, journal, out, calls)
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
    assert calls.stat().st_size <= batches + kills
    assert not [
        p for p in journal.iterdir() if p.suffix not in (".safetensors", ".json", ".partial")
    ]


def shared_run(meeting: Path, rank: int, out: Path) -> None:
    """Run the cascade as one of two processes."""
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.save(run(), out)
    distributed.barrier()
    distributed.destroy_process_group()


def test_two_processes_give_the_verdicts_of_one(tmp_path):
    outs = [tmp_path / f"{rank}.pt" for rank in range(2)]
    processes = [Forked(shared_run, tmp_path / "store", r, out) for r, out in enumerate(outs)]
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
