"""Every system of the papers by its own command: presets, what they extend, suffixes of names."""

import json
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from robust_plugin.recipes.catalogue.preset_list import listing
from robust_plugin.recipes.cli import main
from robust_plugin.recipes.config import presets
from robust_plugin.recipes.config.compare import CompareConfig
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.presets import CONFIGS, preset_layers, preset_names, variants
from robust_plugin.recipes.config.read import as_plain, build, read_preset
from robust_plugin.recipes.config.schema import RecipeConfig
from robust_plugin.recipes.models.registry import NAMES
from robust_plugin.recipes.papers.hydra import HydraConfig
from robust_plugin.recipes.papers.registry import RECIPES

METHODS = ("gradual", "magnitude", "hydra", "harp")
SYSTEMS = [name for name in preset_names() if name.partition("/")[0] in METHODS]


def settings(name: str, command: str = "") -> Any:
    return read_preset(name, RECIPES[command or name.partition("/")[0]].config)


# --- every preset


PRESETS = preset_names()


def kind_of(preset: str) -> Any:
    command = Path(preset).parts[0]
    others = {"compare": CompareConfig, "evaluate": EvaluateConfig}
    return others[command] if command in others else RECIPES[command].config


def launch(preset: str) -> list[str]:
    """The words of the command in a preset's first line."""
    first = (CONFIGS / f"{preset}.yaml").read_text().splitlines()[0]
    command = first.removeprefix("#").split("  ")[0]  # what follows two spaces is a remark
    return shlex.split(command)


def test_there_are_presets_of_every_command() -> None:
    commands = {Path(preset).parts[0] for preset in PRESETS}
    assert commands == {*METHODS, "compare", "evaluate"}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fills_its_dataclass_and_survives_json(preset: str) -> None:
    config = read_preset(preset, kind_of(preset))
    assert type(config) is kind_of(preset)
    written = yaml.safe_load((CONFIGS / f"{preset}.yaml").read_text())
    assert written.pop("about") and written.pop("extends", True)
    plain = as_plain(config)
    assert build(kind_of(preset), json.loads(json.dumps(plain)), where="json") == config

    def covered(part: Any, whole: Any) -> bool:
        if isinstance(part, dict):
            return all(covered(value, whole[key]) for key, value in part.items())
        return bool(part == whole)

    assert covered(written, plain)  # what the file says is what the run gets


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_opens_with_the_command_that_launches_it(preset: str) -> None:
    program, command, *rest = launch(preset)
    assert program == "robust-plugin" and command == Path(preset).parts[0]
    assert rest[rest.index("--config") + 1] == preset


# --- every system parses


def test_every_name_that_the_list_offers_parses() -> None:
    found: dict[str, Any] = {}
    for name in SYSTEMS:
        command = name.partition("/")[0]
        for each in variants().values():
            if command in each.commands:
                found[f"{name}-{each.name}"] = settings(f"{name}-{each.name}")
        found[name] = settings(name)
    assert len(found) > 300
    # A recipe's own settings aside, the baseline of every preset is the preset itself.
    for name in SYSTEMS:
        if not name.endswith("-hinge"):
            for suffix in ("", "-erk", "-lamp", "-iterative"):
                assert settings(name + suffix, "magnitude").model == found[name].model


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("harp/cifar10-vgg16-mart", {"model": "vgg16-bn", "objective.name": "mart"}),
        ("harp/svhn-wrn28-4-trades-rates", {"learn": "rates", "objective.beta": 6.0}),
        ("harp/cifar10-resnet18-scores", {"learn": "scores", "rates": "erk"}),
        ("harp/cifar10-resnet18-scores-lamp", {"learn": "scores", "rates": "lamp"}),
        ("harp/cifar10-vgg16-channels", {"structure": "channels", "density": 0.5}),
        ("harp/cifar10-vgg16-hinge", {"control": "hinge", "gamma_step": 0.01}),
        ("harp/imagenet-resnet50-hinge", {"gamma_step": 0.1, "objective.name": "free"}),
        ("hydra/svhn-vgg16-smoothing", {"data.name": "svhn", "objective.name": "stability"}),
        ("hydra/svhn-cnn-large-mixtrain", {"model": "cnn-large", "objective.points": 1}),
        ("hydra/svhn-cnn-small-mixtrain", {"model": "cnn-small", "objective.points": 5}),
        ("hydra/cifar10-vgg16-hidden", {"finetune.epochs": 0, "pretraining": "benign"}),
        ("magnitude/cifar10-vgg16-channels-iterative", {"rounds": 4, "budget": "channels"}),
        ("magnitude/cifar10-cnn-large-verifiable", {"objective.name": "mixtrain"}),
        ("hydra/digits-crown-ibp", {"objective.bounds": "crown-ibp", "objective.kappa": (0, 0)}),
        ("hydra/digits-mixtrain", {"objective.name": "mixtrain", "pretrain.ramp": 0.4}),
        ("hydra/digits-smoothing", {"threat.norm": "L2", "evaluation.smooth": 400}),
        (
            "gradual/cifar10-resnet18-both",
            {"learn": "both", "rates": "lamp", "schedule": "geometric"},
        ),
        ("magnitude/cifar10-vgg16-gradual", {"rates": "lamp", "schedule": "geometric"}),
        ("magnitude/digits-verifiable", {"evaluation.verify": 400, "pretrain.epochs": 160}),
    ],
)
def test_a_name_says_what_it_is(name: str, expected: dict[str, Any]) -> None:
    for key, value in expected.items():
        found: Any = settings(name)
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value, key


def test_no_preset_is_of_one_machine() -> None:
    for name in SYSTEMS:
        found: RecipeConfig = settings(name)
        assert found.model in NAMES and found.checkpoint is None and found.data.folder is None
        assert found.seed == 0 and found.device == "auto"


# --- what is refused


def test_a_file_may_extend_a_preset_and_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: hydra/svhn-vgg16-erk\nprune: {lr: 0.3}\n")
    (tmp_path / "next.yaml").write_text("extends: mine.yaml\nabout: the next\ndensity: 0.2\n")
    base, found = settings("hydra/svhn-vgg16"), read_preset(tmp_path / "next.yaml", HydraConfig)
    assert (found.model, found.rates, found.density) == (base.model, "erk", 0.2)
    assert (found.prune.lr, found.prune.epochs) == (0.3, base.prune.epochs)
    assert preset_layers(tmp_path / "next.yaml")[-1].about == "the next"


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("mine.yaml", r"extend one another in a circle: .*mine.yaml -> .*mine.yaml\."),
        ("other.yaml", r"circle: .*mine.yaml -> .*other.yaml -> .*mine.yaml\."),
        (
            "hydra/mnist",
            r"no preset or file hydra/mnist, which .*mine.yaml extends \(did you mean "
            r"hydra/images or hydra/digits\?\); .* list",
        ),
    ],
)
def test_what_cannot_be_extended_is_named(tmp_path: Path, extends: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"extends: {extends}\n")
    (tmp_path / "other.yaml").write_text("extends: mine.yaml\n")
    with pytest.raises(ValueError, match=message):
        read_preset(tmp_path / "mine.yaml", HydraConfig)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "hydra/digits-fast",
            r"no preset or file hydra/digits-fast \(did you mean hydra/digits-.*\?\); "
            "robust-plugin list shows",
        ),
        ("hydra/digits-erk-lamp", r"-erk and -lamp both choose the rates"),
        ("hydra/digits-hinge", r"-hinge: unknown setting control; legal: model"),
    ],
)
def test_an_ending_that_does_not_fit_is_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(name)


def test_a_wrong_setting_is_blamed_on_the_file_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presets, "CONFIGS", tmp_path)
    (tmp_path / "base.yaml").write_text("densty: 0.1\n")
    (tmp_path / "mine.yaml").write_text("extends: base\n")
    with pytest.raises(ValueError, match=r"base.yaml: unknown setting densty"):
        read_preset("mine", HydraConfig)


# --- the list


def test_the_list_has_every_preset_and_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert printed == f"{listing()}\n" and printed.isascii()
    assert max(map(len, printed.splitlines())) <= 100
    shown = [line.split()[0] for line in printed.splitlines() if line.startswith("  ")]
    for name in preset_names():
        assert name in shown
    for each in variants().values():
        assert f"-{each.name} " in printed
    (row,) = [line for line in printed.splitlines() if "hydra/cifar10-wrn28-10 " in line]
    assert row.split()[1] == "10" and row.endswith("TRADES, WRN-28-10 on CIFAR-10")
    assert "    harp/cifar10-vgg16-channels" in printed


# --- every system runs

SHORT = {
    "data.name": "folder",
    "data.test": "None",  # a folder has test points of its own
    "data.image-size": "8",
    "data.workers": "0",
    "data.validation": "0.25",
    "data.batch-size": "24",  # two steps an epoch
    "objective.steps": "1",
    "objective.replays": "1",
    "pretrain.epochs": "1",
    "prune.epochs": "1",
    "finetune.epochs": "1",
    "finetune.lr": "0.001",
    "evaluation.steps": "1",
    "evaluation.restarts": "1",
    "evaluation.autoattack": "0",
    "evaluation.curve": "0",
    "evaluation.votes": "100",
    "density": "0.3",
    "device": "cpu",
    "threads": "1",
}


def extra_images(folder: Path, size: int) -> Path:
    """Sixteen more images of four classes, with labels, in a file."""
    pixels = np.random.default_rng(1).integers(0, 256, (16, size, size, 3)).astype(np.uint8)
    np.savez(folder / "extra.npz", images=pixels, labels=np.arange(16) % 4)
    return folder / "extra.npz"


def run(name: str, out: Path, *, command: str = "", **options: str) -> dict[str, Any]:
    """Run a system for two steps a phase by the command line; return its report.json."""
    command = command or name.partition("/")[0]
    config = settings(name, command)
    short = dict(SHORT)
    for how in ("verify", "smooth"):  # two points, where the preset has points proved
        short[f"evaluation.{how}"] = str(min(2, getattr(config.evaluation, how)))
    if not config.finetune.epochs:
        del short["finetune.epochs"]
    elif command == "gradual":  # one for shrink
        short["finetune.epochs"] = "2"
    short |= {key.replace("_", "."): value for key, value in options.items()}
    if config.data.extra is not None:
        short["data.extra"] = str(extra_images(out.parent, int(short["data.image-size"])))
    words = [f"--{key}={value}" for key, value in short.items()]
    assert main([command, f"--config={name}", f"--out={out}", *words]) == 0
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    stages = list(dict.fromkeys(line["stage"] for line in log))
    learned = ["prune"] if command != "magnitude" else []
    learned = ["shrink", *learned] if command == "gradual" else learned
    tuned = [stage for stage in stages if stage.startswith("finetune-")]
    last = ["finetune"] if config.finetune.epochs else []
    assert stages == ["pretrain", *learned, *tuned, *last]
    kept, size = (sum(each) for each in zip(*report["kept"].values(), strict=True))
    if config.structure == "weights":
        assert kept == pytest.approx(0.3 * size, rel=0.01)
    else:
        assert kept < size and (out / "small.safetensors").is_file()
    assert (report["smoothing"] is not None) == bool(config.evaluation.smooth)
    assert (report["report"]["certified"] is not None) == bool(config.evaluation.verify)
    return report


GRADUAL = ("gradual/digits-crown-ibp", "gradual/cifar10-resnet18", "gradual/imagenet-resnet50")
BENCH = pytest.mark.bench


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A folder for a run; large networks leave much behind, so that it goes away."""
    yield tmp_path / "out"
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


# Those of gradual are other presets with LAMP's rates; a few of them stand for all.
EVERY = [
    name if not name.startswith("gradual/") or name in GRADUAL else pytest.param(name, marks=BENCH)
    for name in SYSTEMS
]


@pytest.mark.usefixtures("at_workplace")
@pytest.mark.parametrize("name", EVERY)
def test_two_steps_of_every_system_on_a_small_network(name: str, out: Path) -> None:
    run(name, out, model="tiny_networks:net", data_folder="images")


ENDED = [
    "magnitude/cifar10-vgg16-trades-lamp",
    "magnitude/cifar10-vgg16-channels-iterative",
    "hydra/cifar10-wrn28-4-adversarial-global",
    "hydra/cifar10-wrn28-4-benign-erk",
    "hydra/cifar10-smoothing-hidden",
    "harp/cifar10-resnet18-mart-scores",
    "harp/cifar10-resnet18-rates-hinge",
    "harp/cifar10-resnet18-channels",
    "magnitude/cifar10-vgg16-gradual",
    "gradual/cifar10-wrn28-4-adversarial-both",
    "gradual/cifar10-resnet18-cubic-channels",
]


@pytest.mark.usefixtures("at_workplace")
@pytest.mark.parametrize("name", ENDED)
def test_two_steps_of_every_ending(name: str, out: Path) -> None:
    epochs = {"finetune_epochs": "5"} if name.endswith("iterative") else {}
    run(name, out, model="tiny_networks:net", data_folder="images", **epochs)


def test_every_ending_is_among_them() -> None:
    words = {word for name in ENDED for word in name.split("-")}
    assert set(variants()) <= words


@pytest.mark.usefixtures("at_workplace")
@pytest.mark.parametrize("suffix", ["", "-erk"])
def test_magnitude_takes_the_presets_of_the_others(suffix: str, out: Path) -> None:
    name = f"hydra/svhn-vgg16{suffix}"
    run(name, out, command="magnitude", model="tiny_networks:net", data_folder="images")
    config = json.loads((out / "config.json").read_text())
    assert config["recipe"] == "MagnitudeConfig" and config["objective"]["name"] == "trades"


@pytest.mark.usefixtures("at_workplace")
def test_a_hidden_network_has_the_weights_of_the_benign_one(out: Path) -> None:
    run("hydra/cifar10-vgg16-hidden", out, model="tiny_networks:net", data_folder="images")
    dense, found = load_file(out / "pretrain.safetensors"), load_file(out / "model.safetensors")
    for name in ("0.weight", "3.weight", "6.weight"):
        kept = found[name] != 0
        assert 0 < int(kept.sum()) < kept.numel()
        assert torch.equal(found[name][kept], dense[f"model/{name}"][kept])


# --- on their own networks


@pytest.fixture(scope="module")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each of four classes to train on, one to validate and one to test, 32x32."""
    root = tmp_path_factory.mktemp("few")
    generator = np.random.default_rng(0)
    for part, count in (("train", 3), ("test", 1)):
        for label in range(4):
            folder = root / part / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


# The small networks; the others, which take a minute together, are run by `make bench`.
OWN = [
    "hydra/cifar10-cnn-large-mixtrain",
    "hydra/digits-certified",
    "hydra/images",
    "harp/digits",
]


@pytest.fixture
def on_own_network(few_images: Path, out: Path) -> Callable[[str], None]:
    def run_on(name: str) -> None:
        config = settings(name)
        options = {"data_folder": str(few_images), "data_image-size": "32"}
        options["data_validation"] = "0.34"  # one of the three of each class
        if config.objective.name == "mixtrain":  # whose memory grows by the fourth power
            options["data_image-size"] = "16" if config.model == "cnn-small" else "8"
        if config.data.name != "digits":
            options["data_batch-size"] = "4"
        else:
            options |= {"data_name": "digits", "data_folder": "None", "data_image-size": "None"}
            options["data_batch-size"] = "600"
        run(name, out, **options)

    return run_on


@pytest.mark.parametrize("name", OWN)
def test_two_steps_on_the_systems_own_network(
    name: str, on_own_network: Callable[[str], None]
) -> None:
    on_own_network(name)


# Channels of every network with residual streams, and of one without.
OWN_CHANNELS = [
    "magnitude/cifar10-vgg16-channels",
    "hydra/cifar10-wrn28-4-channels",
    "hydra/imagenet-resnet50-channels",
    "harp/cifar10-resnet18-channels",
    "gradual/cifar10-resnet18-cubic-channels",
]


@pytest.mark.bench
@pytest.mark.parametrize("name", [*(name for name in SYSTEMS if name not in OWN), *OWN_CHANNELS])
def test_two_steps_of_every_system_on_its_own_network(
    name: str, on_own_network: Callable[[str], None]
) -> None:
    on_own_network(name)


# --- every comparison runs

SHORT_COMPARISON = {
    "data.name": "folder",
    "data.test": "None",  # a folder has test points of its own
    "data.batch-size": "29",  # two steps an epoch
    "data.workers": "0",
    "data.validation": "0.25",
    "objective.steps": "1",
    "pretrain.epochs": "1",
    "prune.epochs": "1",
    "evaluation.steps": "1",
    "evaluation.restarts": "1",
    "evaluation.autoattack": "0",
    "evaluation.curve": "0",
    "evaluation.votes": "100",
    "device": "cpu",
}


PROOFS = ("verify", "smooth")


COMPARED = [each for each in PRESETS if each.startswith("compare/")]
# These take five to twenty seconds each, and have the same rows and networks as others.
LONG = (
    "compare/cifar10-gradual-channels",
    "compare/cifar10-gradual-parts",
    "compare/cifar10-gradual-resnet",
    "compare/cifar10-resnet18",
    "compare/cifar10-resnet18-short",
    "compare/digits-bounds",
    "compare/digits-certified",
    "compare/digits-certified-ten",
    "compare/digits-why",
)


def shortened(preset: str, rows: Mapping[str, Any], folder: Path) -> str:
    """A file that extends a comparison, whose rows have no numbers of epochs of their own."""
    short: dict[str, Any] = {name: dict(row) for name, row in rows.items()}
    for row in short.values():
        for stage in {"prune", "finetune"} & set(row):
            row[stage] = {k: v for k, v in row[stage].items() if k != "epochs" or v == 0}
    if short == rows:
        return preset
    file = folder / "short.yaml"
    file.write_text(yaml.safe_dump({"extends": preset, "rows": short}, sort_keys=False))
    return str(file)


def run_two_steps(preset: str, workplace: Path, out: Path, **changed: str) -> None:
    config = read_preset(preset, CompareConfig)
    short = {**SHORT_COMPARISON, **changed, "data.folder": str(workplace / "images")}
    # Each round of iterative pruning takes an epoch.
    rows = config.rows.values()
    short["finetune.epochs"] = "5" if any("rounds" in row for row in rows) else "2"
    # Two points are proved where the preset has points proved.
    evaluation = config.base.evaluation
    short |= {f"evaluation.{how}": str(min(2, getattr(evaluation, how))) for how in PROOFS}
    words = launch(preset)[1:] + [f"--out={out}"]
    words[words.index(preset)] = shortened(preset, config.rows, out.parent)
    words += [f"--base.{key}={value}" for key, value in short.items()]
    assert main([*words, "--jobs=1", "--seeds=0", "--densities=0.1", "--lrs=0.01"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert [cell["row"] for cell in report["cells"]] == ["dense", *config.rows]


@pytest.mark.parametrize(
    "preset", [pytest.param(p, marks=pytest.mark.bench if p in LONG else ()) for p in COMPARED]
)
def test_two_steps_of_a_comparison_by_its_own_command(
    preset: str, tmp_path: Path, at_workplace: Path
) -> None:
    base = read_preset(preset, CompareConfig).base
    changed = {"model": "resnet18-w16"} if base.model == "resnet18" else {}  # a minute or two
    if base.structure == "channels":
        changed = {"model": "tiny_networks:net"}
    run_two_steps(preset, at_workplace, tmp_path / "out", **changed)


OWN_NETWORK = [each for each in COMPARED if "resnet18" in each or "channels" in each]


@pytest.mark.bench
@pytest.mark.parametrize("preset", OWN_NETWORK)
def test_two_steps_of_a_comparison_on_its_own_network(
    preset: str, tmp_path: Path, workplace: Path
) -> None:
    run_two_steps(preset, workplace, tmp_path / "out")
