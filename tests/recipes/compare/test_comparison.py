"""Comparisons: equal terms, a rate chosen on validation, jobs that end with their parent."""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from comparisons import BASE, ROWS, comparison
from forked import Forked
from safetensors.torch import load_file
from torch.utils.data import Dataset

from robust_plugin.recipes.cli import main
from robust_plugin.recipes.compare.comparison import compare
from robust_plugin.recipes.config.compare import CompareConfig
from robust_plugin.recipes.config.read import build
from robust_plugin.recipes.data.train_val_test import Data
from robust_plugin.recipes.training import loop as training_module
from robust_plugin.recipes.training.loop import _epoch

MEASURES = ("clean", "PGD-2")


def cells(folder: Path) -> dict[tuple[str, float], dict[str, Any]]:
    content = json.loads((folder / "report.json").read_text())
    return {(cell["row"], cell["density"]): cell for cell in content["cells"]}


def test_the_table_has_every_row_with_n_and_intervals(
    tmp_path: Path, use: Callable[[Data], None], planted: Callable[..., Data]
) -> None:
    use(planted())
    text = compare(comparison(densities=[0.3, 0.1]), tmp_path)
    assert text + "\n" == (tmp_path / "report.txt").read_text()
    assert "planted, Linf eps=2/255, 1 seed; test points: clean 40, PGD-2 40" in text
    # One epoch of pruning and three of fine-tuning; rows by magnitude take four of fine-tuning.
    assert "; pruned networks trained 4 epochs longer than the dense one\n" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert [(row[0], row[1]) for row in rows] == [
        ("| 100 %", "dense"),
        *[("| 30 %", name) for name in ROWS],
        *[("| 10 %", name) for name in ROWS],
    ]
    assert all("[" in cell and "]" in cell for row in rows for cell in row[3:])
    assert text.count("that validation chose") == 2
    found = cells(tmp_path)
    assert set(found) == {("dense", 1.0), *[(row, k) for k in (0.3, 0.1) for row in ROWS]}
    kept = json.loads((tmp_path / "report.json").read_text())["kept"]
    assert set(kept) == {f"{row}, {k}" for k in (0.3, 0.1) for row in ROWS}
    for name, layers in kept.items():
        total, size = (sum(each) for each in zip(*layers.values(), strict=True))
        assert total / size == pytest.approx(float(name.split(", ")[1]), abs=0.005)
    for plot in ("densities", "kept", "curves"):
        assert (tmp_path / f"{plot}.png").stat().st_size > 0
    html = (tmp_path / "report.html").read_text()
    assert all(f"</i>{row}</span></td>" in html for row in ROWS) and "restarts: 1" in html
    gains = json.loads((tmp_path / "report.json").read_text())["differences"]
    learned = {(row, k, by) for row in ("HYDRA", "HARP") for k in (0.3, 0.1) for by in MEASURES}
    assert {(gain["first"], gain["density"], gain["measure"]) for gain in gains} == learned


def test_curves_are_the_mean_over_seeds_of_the_epochs_that_were_trained(
    tmp_path: Path, use: Callable[[Data], None], planted: Callable[..., Data]
) -> None:
    use(planted())
    compare(comparison(seeds=[0, 1], lrs=[1e-9, 0.1]), tmp_path)
    curves = json.loads((tmp_path / "report.json").read_text())["curves"]["30 % kept"]
    assert list(curves) == list(ROWS)
    for row, cell in cells(tmp_path).items():
        if row[0] == "dense":
            continue
        logs = []
        for seed in (0, 1):
            run = tmp_path / f"seed{seed}" / row[0].replace(" ", "-") / "0.3" / f"lr{cell['lr']:g}"
            logs.append([json.loads(line) for line in (run / "log.jsonl").open()])
        stages = [record["stage"] for record in logs[0]]
        learned = not row[0].startswith("LWM")
        assert stages == ["prune"] * learned + ["finetune"] * (4 - learned)
        means = [(a["robust"] + b["robust"]) / 2 for a, b in zip(*logs, strict=True)]
        assert curves[row[0]] == means


def test_all_rows_start_from_the_dense_network_of_their_seed(
    tmp_path: Path, use: Callable[[Data], None], planted: Callable[..., Data]
) -> None:
    use(planted())
    compare(comparison(seeds=[0, 1], rows={"LWM": {"recipe": "magnitude"}}), tmp_path)
    firsts = []
    for seed in (0, 1):
        dense = tmp_path / f"seed{seed}" / "dense"
        run = tmp_path / f"seed{seed}" / "LWM" / "0.3" / "lr0.05"
        config = json.loads((run / "config.json").read_text())
        assert config["checkpoint"] == str(dense / "pretrained.safetensors")
        assert config["seed"] == seed
        assert not (run / "pretrain.safetensors").exists()
        firsts.append(load_file(dense / "pretrained.safetensors")["0.weight"])
    assert not firsts[0].equal(firsts[1])
    assert "2 seeds" in (tmp_path / "report.txt").read_text()


def test_one_dense_network_may_be_given_for_all_seeds(
    tmp_path: Path,
    use: Callable[[Data], None],
    planted: Callable[..., Data],
    epochs_trained: Counter[str],
) -> None:
    use(planted())
    rows = {"LWM": {"recipe": "magnitude"}}
    compare(comparison(rows=rows), tmp_path / "first")
    dense = tmp_path / "first" / "seed0" / "dense" / "pretrained.safetensors"
    epochs_trained.clear()
    given = {**BASE, "checkpoint": str(dense)}
    compare(comparison(rows=rows, base=given, seeds=[1, 2]), tmp_path / "second")
    assert epochs_trained == {"finetune": 2 * (1 + 3)}
    for seed in (1, 2):
        used = load_file(tmp_path / "second" / f"seed{seed}" / "dense" / "pretrained.safetensors")
        assert all(used[key].equal(tensor) for key, tensor in load_file(dense).items())


@pytest.mark.parametrize("shift", [0, 1])
def test_the_learning_rate_is_chosen_on_validation_not_on_test(
    shift: int, tmp_path: Path, use: Callable[[Data], None], planted: Callable[..., Data]
) -> None:
    # The dense network is untrained. With true labels on validation, the larger learning rate wins.
    # With shifted labels there, a network that learns the training labels is always wrong, so the
    # rate that learns nothing wins, although it is worse on the test points.
    use(planted(shift=shift))
    config = comparison(
        base={**BASE, "pretrain": {"epochs": 1, "lr": 1e-9}, "finetune": {"epochs": 8}},
        lrs=[1e-9, 0.1],
        rows={"LWM": {"recipe": "magnitude"}},
        densities=[0.9],
    )
    compare(config, tmp_path)
    found = cells(tmp_path)["LWM", 0.9]
    assert found["lr"] == (1e-9 if shift else 0.1)
    (accuracy,) = found["accuracy"]["clean"]
    assert (accuracy <= 0.5) if shift else (accuracy >= 0.9)
    # The other learning rate was trained, and never evaluated on test points.
    other = tmp_path / "seed0" / "LWM" / "0.9" / f"lr{0.1 if shift else 1e-9:g}"
    assert (other / "finetune.safetensors").exists() and not (other / "report.json").exists()


def test_the_rate_is_chosen_on_the_first_seeds_and_the_others_train_at_it_alone(
    tmp_path: Path, use: Callable[[Data], None], planted: Callable[..., Data]
) -> None:
    use(planted(signal=0.15, noise=0.6))
    rows = {"LWM": {"recipe": "magnitude"}, "HYDRA": {"recipe": "hydra"}}
    config = comparison(rows=rows, seeds=[3, 4], lrs=[1e-9, 0.1], tuning_seeds=1)
    compare(config, tmp_path)
    for row in rows:
        cell = cells(tmp_path)[row, 0.3]
        logs = {
            (seed, lr): path.read_text().splitlines()
            for seed in (3, 4)
            for lr in (1e-9, 0.1)
            if (path := tmp_path / f"seed{seed}/{row}/0.3/lr{lr:g}/log.jsonl").is_file()
        }
        assert set(logs) == {(3, 1e-9), (3, 0.1), (4, cell["lr"])}
        best = {lr: max(json.loads(line)["robust"] for line in logs[3, lr]) for lr in config.lrs}
        assert cell["lr"] == max(config.lrs, key=lambda lr: best[lr]) == 0.1
        finetuned = [json.loads(line) for line in logs[3, 0.1]]
        finetuned = [line["robust"] for line in finetuned if line["stage"] == "finetune"]
        assert cell["validation"] == max(finetuned)  # of the seed on which the rate was chosen
        assert all(len(values) == 2 for values in cell["accuracy"].values())
    html = " ".join((tmp_path / "report.html").read_text().split())
    assert "was chosen by robust accuracy on the validation points of the first seed" in html
    # With all seeds, which is the default, more is trained.
    compare(replace(config, tuning_seeds=0), tmp_path)
    assert (tmp_path / "seed4/LWM/0.3/lr1e-09/log.jsonl").is_file()
    html = " ".join((tmp_path / "report.html").read_text().split())
    assert "was chosen by mean robust accuracy on validation, and" in html


def test_a_rate_at_which_another_seed_diverges_is_replaced(
    tmp_path: Path,
    use: Callable[[Data], None],
    planted: Callable[..., Data],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(planted(signal=0.15, noise=0.6))

    def diverging(run: Any, name: str, *rest: Any) -> float:
        if run.config.seed == 4 and run.config.finetune.lr == 0.1 and name == "finetune":
            raise training_module.Diverged("the loss is nan")
        return _epoch(run, name, *rest)

    monkeypatch.setattr(training_module, "_epoch", diverging)
    config = comparison(
        rows={"LWM": {"recipe": "magnitude"}}, seeds=[3, 4], lrs=[1e-9, 0.1], tuning_seeds=1
    )
    compare(config, tmp_path)
    cell = cells(tmp_path)["LWM", 0.3]
    assert (cell["lr"], cell["diverged"]) == (1e-9, [0.1])
    assert (tmp_path / "seed4/LWM/0.3/lr1e-09/finetune.safetensors").is_file()


class Guarded(Dataset[Any]):
    """Test points that raise an error if they are read before all training is over."""

    def __init__(self, points: Dataset[Any], trained: Callable[[], bool]) -> None:
        self.points, self.trained = points, trained

    def __len__(self) -> int:
        return len(self.points)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        assert self.trained(), "a test point was looked at before all training was over"
        return self.points[index]


def test_the_prune_phase_is_trained_once_for_all_learning_rates_and_test_points_come_last(
    tmp_path: Path,
    use: Callable[[Data], None],
    planted: Callable[..., Data],
    epochs_trained: Counter[str],
) -> None:
    lrs = [0.01, 0.03, 0.1]
    # The prune phase of gradual comes after training at each of the rates.
    total = {"pretrain": 2, "prune": 2 + 3, "finetune": 3 * (2 * (3 + 1) + 2 * 3 + 2), "shrink": 3}
    data = planted()
    use(replace(data, test=Guarded(data.test, lambda: epochs_trained == total)))
    rows = {**ROWS, "gradual": {"recipe": "gradual"}}
    compare(comparison(lrs=lrs, rows=rows), tmp_path)
    # Two rows learn a mask, for one epoch; fine-tuning of the magnitude rows gets that epoch too.
    assert epochs_trained == total
    here = tmp_path / "seed0" / "HYDRA" / "0.3"
    first, *others = [(here / f"lr{lr:g}" / "prune.safetensors").read_bytes() for lr in lrs]
    assert all(other == first for other in others)
    tuned = [load_file(here / f"lr{lr:g}" / "finetune.safetensors") for lr in lrs]
    name = "model/3.weight"
    assert not tuned[0][name].equal(tuned[1][name])


def test_a_row_alone_gives_what_it_gives_in_the_comparison(
    tmp_path: Path, use: Callable[[Data], None], planted: Callable[..., Data]
) -> None:
    use(planted(signal=0.15, noise=0.6))
    compare(comparison(lrs=[0.02, 0.1]), tmp_path / "all")
    compare(comparison(lrs=[0.1], rows={"HARP": ROWS["HARP"]}), tmp_path / "alone")
    for file in ("prune.safetensors", "finetune.safetensors"):
        states = [
            load_file(tmp_path / which / "seed0" / "HARP" / "0.3" / "lr0.1" / file)
            for which in ("all", "alone")
        ]
        assert all(states[0][key].equal(states[1][key]) for key in states[0])


def test_an_interrupted_comparison_goes_on(
    tmp_path: Path,
    use: Callable[[Data], None],
    planted: Callable[..., Data],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(planted(signal=0.15, noise=0.6))
    config = comparison(lrs=[0.05, 0.1])
    compare(config, tmp_path / "whole")
    left = [0]

    def interrupted(*arguments: Any) -> float:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return _epoch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training_module, "_epoch", interrupted)
        for _ in range(100):
            left[0] = 5
            try:
                compare(config, tmp_path / "stopped")
                break
            except KeyboardInterrupt:
                continue
    for file in ("report.json", "report.txt"):
        assert (tmp_path / "stopped" / file).read_text() == (tmp_path / "whole" / file).read_text()


def test_the_better_epoch_counts_only_where_it_is_kept(
    tmp_path: Path, use: Callable[[Data], None], planted: Callable[..., Data]
) -> None:
    # With shifted labels the first epoch is the best on validation: at this rate it is still at
    # chance, and the last one has learned the labels that validation counts as wrong. A row that
    # keeps its last epoch must not get the accuracy of the first one.
    use(planted(shift=1))
    rows = {
        "LWM best": {"recipe": "magnitude"},
        "LWM last": {"recipe": "magnitude", "finetune": {"select": "last"}},
    }
    base = {**BASE, "pretrain": {"epochs": 1, "lr": 1e-9}, "finetune": {"epochs": 8}}
    compare(comparison(base=base, rows=rows, lrs=[0.02], densities=[0.9]), tmp_path)
    found = cells(tmp_path)
    lines = (tmp_path / "seed0/LWM-last/0.9/lr0.02/log.jsonl").read_text().splitlines()
    robust = [json.loads(line)["robust"] for line in lines]
    assert found["LWM last", 0.9]["validation"] == robust[-1]
    assert found["LWM best", 0.9]["validation"] == max(robust) > robust[-1]


def test_a_report_of_a_comparison_has_the_settings_that_were_used_and_the_versions(
    tmp_path: Path, use: Callable[[Data], None], planted: Callable[..., Data]
) -> None:
    use(planted())
    config = comparison(rows={"HYDRA": {"recipe": "hydra", "pattern": "2:4"}}, densities=[0.5])
    compare(config, tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    base = content["settings"]["base"]
    assert "density" not in base and "seed" not in base and "lr" not in base["finetune"]
    assert base["finetune"]["epochs"] == 3 and content["settings"]["densities"] == [0.5]
    assert build(CompareConfig, content["settings"], where="report") == config
    assert content["versions"]["torch"] == torch.__version__
    assert f"torch {torch.__version__}" in (tmp_path / "report.html").read_text()
    # The pattern keeps 2 of every 4 input channels; the first layer, with 3, is not checked here.
    assert list(content["kept"]["HYDRA, 0.5"].values())[1:] == [[576, 1152], [128, 256]]


# --- several processes ---------------------------------------------------------------------------


def children(pid: int) -> Iterator[int]:
    """Yield all descendants of a process, read from /proc."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue  # it ended meanwhile
            if parent == pid:
                yield int(entry.name)
                yield from children(int(entry.name))


def ended(pids: list[int]) -> bool:
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_jobs_end_with_their_parent_and_two_give_what_one_gives(
    tmp_path: Path, workplace: Path, at_workplace: Path
) -> None:
    data = {"name": "folder", "folder": "images", "batch_size": 16, "validation": 0.25}
    base = {**BASE, "data": data, "finetune": {"epochs": 20}}
    rows = {"LWM": ROWS["LWM uniform"], "HARP": ROWS["HARP"]}
    content = {"base": base, "rows": rows, "densities": [0.3], "lrs": [0.05]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    command = ["compare", f"--config={tmp_path / 'mine.yaml'}"]
    assert main([*command, "--jobs=1", f"--out={tmp_path / 'one'}"]) == 0

    out = tmp_path / "two"

    def launched() -> Forked:
        return Forked(main, [*command, "--jobs=2", f"--out={out}"], cwd=workplace, group=True)

    for how, until in (
        (signal.SIGINT, "seed0/LWM/0.3/lr0.05/log.jsonl"),
        (signal.SIGKILL, "seed0/HARP/0.3/lr0.05/finetune.safetensors"),
    ):
        process = launched()
        while not (out / until).exists() or len(workers := list(children(process.pid))) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        if how == signal.SIGINT:
            os.killpg(process.pid, how)  # Ctrl-C signals the whole group
        else:
            process.kill()
        printed, errors = process.communicate(timeout=60)
        deadline = time.monotonic() + 10
        while not ended(workers):
            assert time.monotonic() < deadline, "worker processes are left"
            time.sleep(0.02)
        if how == signal.SIGINT:
            assert process.returncode == 130, errors
            assert "Traceback" not in errors and printed == ""
        assert not (out / "report.json").exists()
    process = launched()
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    one, two = (
        json.loads((tmp_path / each / "report.json").read_text()) for each in ("one", "two")
    )
    assert one.pop("settings")["jobs"] == 1 and two.pop("settings")["jobs"] == 2
    assert one == two
    assert (out / "report.txt").read_text() == (tmp_path / "one" / "report.txt").read_text()
    assert (out / "report.txt").read_text() in printed
    models = [path.relative_to(out) for path in out.rglob("model.safetensors")]
    assert len(models) == 3
    for model in models:
        ours, theirs = load_file(out / model), load_file(tmp_path / "one" / model)
        assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_a_rate_that_diverges_is_named_and_not_chosen(
    tmp_path: Path, use: Callable[[Data], None], planted: Callable[..., Data]
) -> None:
    use(planted())
    config = comparison(rows={"LWM": ROWS["LWM uniform"], "HYDRA": ROWS["HYDRA"]}, lrs=[1e9, 0.05])
    text = compare(config, tmp_path)
    alone = compare(replace(config, lrs=(0.05,)), tmp_path / "alone")
    for row in ("LWM", "HYDRA"):
        assert cells(tmp_path)[row, 0.3]["diverged"] == [1e9]
        assert f"- {row}, 30 % kept: 1e+09" in text.splitlines()
        both = (cells(folder)[row, 0.3] for folder in (tmp_path, tmp_path / "alone"))
        assert [{**cell, "diverged": []} for cell in both] == [
            cells(tmp_path / "alone")[row, 0.3]
        ] * 2
    assert "diverged" not in alone
    assert "0.05 (1e+09 diverged)" in (tmp_path / "report.html").read_text()
    assert compare(config, tmp_path) == text
    with pytest.raises(ValueError, match="LWM has diverged at every learning rate, 0.3 kept"):
        compare(replace(config, lrs=(1e9, 1e10)), tmp_path)


def test_a_row_without_fine_tuning_is_its_mask_alone(
    tmp_path: Path, use: Callable[[Data], None], planted: Callable[..., Data]
) -> None:
    use(planted())
    rows = {"hidden": {"recipe": "hydra", "prune": {"epochs": 3}, "finetune": {"epochs": 0}}}
    compare(comparison(rows=rows, base={**BASE, "pretraining": "benign"}), tmp_path)
    here = tmp_path / "seed0" / "hidden" / "0.3" / "lr0.05"
    assert not (here / "finetune.safetensors").exists()
    log = [json.loads(line) for line in (here / "log.jsonl").open()]
    assert [line["stage"] for line in log] == ["prune"] * 3
    assert cells(tmp_path)["hidden", 0.3]["validation"] == log[-1]["robust"]
    dense = load_file(tmp_path / "seed0" / "dense" / "pretrained.safetensors")
    model = load_file(here / "model.safetensors")
    kept = model["3.weight"] != 0
    assert 0.2 < kept.double().mean() < 0.4
    assert model["3.weight"][kept].equal(dense["3.weight"][kept])
