import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from robust_plugin.objectives.ramp import Ramp, Shape
from robust_plugin.recipes.cli import main
from robust_plugin.recipes.config.compare import CompareConfig
from robust_plugin.recipes.config.evaluate import EvaluateConfig
from robust_plugin.recipes.config.objective import ObjectiveConfig, ObjectiveName
from robust_plugin.recipes.config.presets import CONFIGS, preset_names
from robust_plugin.recipes.config.read import as_plain, build, read_preset
from robust_plugin.recipes.config.schema import RecipeConfig, ThreatConfig
from robust_plugin.recipes.papers.harp import HarpConfig
from robust_plugin.recipes.papers.hydra import HydraConfig
from robust_plugin.recipes.papers.registry import RECIPES
from robust_plugin.recipes.training.objective import build_objective
from robust_plugin.threat.model import ThreatModel

PRESETS = preset_names()


def kind_of(preset: str) -> Any:
    command = Path(preset).parts[0]
    others = {"compare": CompareConfig, "evaluate": EvaluateConfig}
    return others[command] if command in others else RECIPES[command][0]


def launch(preset: str) -> list[str]:
    """The words of the command in a preset's first line."""
    first = (CONFIGS / f"{preset}.yaml").read_text().splitlines()[0]
    command = first.removeprefix("#").split("  ")[0]  # what follows two spaces is a remark
    return shlex.split(command)


def test_there_are_presets_of_every_command() -> None:
    commands = {Path(preset).parts[0] for preset in PRESETS}
    assert commands == {"magnitude", "hydra", "harp", "compare", "evaluate"}


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


SHORT = {
    "data.name": "folder",
    "data.test": "None",  # a folder has test points of its own
    "data.batch-size": "29",  # two steps an epoch
    "data.workers": "0",
    "data.validation": "0.25",
    "objective.steps": "1",
    "pretrain.epochs": "1",
    "prune.epochs": "1",
    "finetune.epochs": "5",  # each round of iterative pruning takes an epoch
    "evaluation.steps": "1",
    "evaluation.restarts": "1",
    "evaluation.autoattack": "0",
    "evaluation.votes": "100",
    "device": "cpu",
}
PROOFS = ("verify", "smooth")
COMPARED = [each for each in PRESETS if each.startswith("compare/")]


def run_two_steps(preset: str, workplace: Path, out: Path, **changed: str) -> None:
    config = read_preset(preset, CompareConfig)
    short = {**SHORT, **changed, "data.folder": str(workplace / "images")}
    # Two points are proved where the preset has points proved.
    of = config.base.evaluation
    short |= {f"evaluation.{how}": str(min(2, getattr(of, how))) for how in PROOFS}
    words = launch(preset)[1:] + [f"--out={out}"]
    words += [f"--base.{key}={value}" for key, value in short.items()]
    assert main([*words, "--jobs=1", "--seeds=0", "--densities=0.1", "--lrs=0.01"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert [cell["row"] for cell in report["cells"]] == ["dense", *config.rows]


# Those of recipes run in test_presets.py, those of evaluate in test_evaluate.py.
@pytest.mark.parametrize("preset", COMPARED)
def test_two_steps_of_a_comparison_by_its_own_command(
    preset: str, tmp_path: Path, workplace: Path
) -> None:
    wide = read_preset(preset, CompareConfig).base.model == "resnet18"  # a minute or two
    run_two_steps(
        preset, workplace, tmp_path / "out", **({"model": "resnet18-w16"} if wide else {})
    )


@pytest.mark.bench
@pytest.mark.parametrize("preset", [each for each in COMPARED if "resnet18" in each])
def test_two_steps_of_a_comparison_on_its_own_network(
    preset: str, tmp_path: Path, workplace: Path
) -> None:
    run_two_steps(preset, workplace, tmp_path / "out")


# --- strictness


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"densty": 0.1}, r"here: unknown key 'densty'; legal: model, .*density"),
        ({"data": {"nam": "digits"}}, r"here: data: unknown key 'nam'; legal: name, folder"),
        ({"objective": {"name": "pgd"}}, r"here: objective: name is 'pgd'; legal: benign, "),
        ({"rates": "ekr"}, r"here: rates is 'ekr'; legal: uniform, erk, lamp, global"),
        ({"density": "much"}, r"here: density is 'much'; legal: float"),
        ({"density": None}, r"here: density is None; legal: float"),
        ({"seed": 1.5}, r"here: seed is 1.5; legal: int"),
        ({"seed": [1]}, r"here: seed is \[1\]; legal: int"),
        ({"threads": "one"}, r"here: threads is 'one'; legal: int"),
        ({"prune": {"decay_scores": "no"}}, r"here: prune: decay_scores is 'no'; legal: bool"),
        ({"prune": 3}, r"here: prune: 3 is no mapping of StageConfig"),
        ({"exclude": "fc"}, r"here: exclude is 'fc'; legal: a list"),
        ({"exclude": ["a", ["b"]]}, r"here: exclude is \['b'\]; legal: str"),
        ({"model": {"a": 1}}, r"here: model is \{'a': 1\}; legal: str"),
        ({"model": ["a"]}, r"here: model is \['a'\]; legal: str"),
        ({"model": True}, r"here: model is True; legal: str"),
        ({"device": None}, r"here: device is None; legal: str"),
        ({"threat": {"eps": ["8/255"]}}, r"here: threat: eps is \['8/255'\]; legal: str"),
        ({"threat": {"eps": True}}, r"here: threat: eps is True; legal: str"),
        ({"density": True}, r"here: density is True; legal: float"),
        ({"density": float("nan")}, r"here: density is nan; legal: float, finite"),
        ({"density": "nan"}, r"here: density is 'nan'; legal: float, finite"),
        ({"prune": {"lr": float("inf")}}, r"here: prune: lr is inf; legal: float, finite"),
        ({"seed": True}, r"here: seed is True; legal: int"),
        ({"seed": "2.5"}, r"here: seed is '2.5'; legal: int"),
        ({"seed": float("inf")}, r"here: seed is inf; legal: int"),
        ({"threads": False}, r"here: threads is False; legal: int"),
        ({"data": {"folder": True}}, r"here: data: folder is True; legal: Path"),
        ({"data": {"folder": ""}}, r"here: data: folder is ''; legal: Path"),
        ({"objective": {"kappa": [1, 0.5, 0]}}, r"kappa is \[1, 0.5, 0\]; legal: a list of 2"),
        ({"objective": {"kappa": [1]}}, r"here: objective: kappa is \[1\]; legal: a list of 2"),
        ({"objective": {"kappa": [1, True]}}, r"here: objective: kappa is True; legal: float"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_legal(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(RecipeConfig, content, where="here")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rows": ["LWM"]}, r"rows is \['LWM'\]; legal: a mapping"),
        ({"rows": {"LWM": "magnitude"}}, r"rows: LWM is 'magnitude'; legal: a mapping"),
        ({"densities": 0.1}, r"densities is 0.1; legal: a list"),
        ({"lrs": ["fast"]}, r"lrs is 'fast'; legal: float"),
        ({"base": {"density": {}}}, r"base: density is \{\}; legal: float"),
        ({"seeds": [0, True]}, r"seeds is True; legal: int"),
        ({"rows": {True: {"recipe": "hydra"}}}, r"rows is True; legal: str"),
    ],
)
def test_a_wrong_setting_of_a_comparison_is_named(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(CompareConfig, content, where="here")


def test_values_take_the_type_of_their_setting() -> None:
    content = {"data": {"folder": "images", "workers": 0}, "density": 1, "threads": None}
    config = build(RecipeConfig, content, where="here")
    assert config.data.folder == Path("images") and config.threads is None
    assert isinstance(config.density, float)
    assert build(RecipeConfig, {"exclude": ["a", "b"]}, where="here").exclude == ("a", "b")


def test_numbers_may_be_written_as_text_and_text_as_numbers(tmp_path: Path) -> None:
    text = "density: 1e-3\nseed: 1e2\nprune: {lr: '0.5'}\nthreat: {eps: 0.1}\nexclude: [0]\n"
    assert isinstance(yaml.safe_load(text)["density"], str)  # what YAML makes of 1e-3
    (tmp_path / "mine.yaml").write_text(text)
    config = read_preset(tmp_path / "mine.yaml", HydraConfig)
    assert (config.density, config.seed, config.prune.lr) == (0.001, 100, 0.5)
    assert config.threat.build().eps == 0.1 and config.exclude == ("0",)
    large = 2**62 + 1  # which no float holds
    assert build(RecipeConfig, {"seed": large}, where="here").seed == large


def test_what_a_preset_leaves_out_is_the_dataclass_default(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("density: 0.2\nprune: {lr: 0.3}\n")
    config = read_preset(tmp_path / "mine.yaml", HarpConfig)
    assert config == dataclasses.replace(
        HarpConfig(), density=0.2, prune=dataclasses.replace(HarpConfig().prune, lr=0.3)
    )


def test_an_empty_preset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    with pytest.raises(ValueError, match=r"empty.yaml is empty; it would change no setting"):
        read_preset(tmp_path / "empty.yaml", HydraConfig)


def test_a_preset_that_is_not_there_points_to_the_list() -> None:
    with pytest.raises(ValueError, match="file hydra/mnist; robust-plugin list .*hydra/digits"):
        read_preset("hydra/mnist", HydraConfig)


@pytest.mark.parametrize(("text", "message"), [("a: [1", "is no YAML"), ("- 1\n", "no mapping")])
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"bad.yaml.*{message}"):
        read_preset(tmp_path / "bad.yaml", HydraConfig)


@pytest.mark.parametrize("name", get_args(ObjectiveName))
def test_every_objective_trains_through_all_phases(
    name: str, tmp_path: Path, run_tiny: Callable[..., dict[str, Any]]
) -> None:
    epochs = (
        [f"--{s}.epochs=4" for s in ("pretrain", "prune", "finetune")] if name == "free" else []
    )
    norm = ["--threat.norm=L2"] * (name == "smoothadv")
    left = run_tiny("hydra", tmp_path / "out", f"--objective.name={name}", *epochs, *norm)
    stages = {line["stage"] for line in left["log"]}
    assert stages == {"pretrain", "prune", "finetune"}


def test_objectives_take_the_papers_beta_unless_given() -> None:
    threat = ThreatConfig(eps="0.1").build()

    def beta(config: ObjectiveConfig) -> float:
        (cell,) = [
            cell.cell_contents
            for name, cell in zip(
                build_objective(config, threat).__code__.co_freevars,  # type: ignore[attr-defined]
                build_objective(config, threat).__closure__,  # type: ignore[attr-defined]
                strict=True,
            )
            if name == "beta"
        ]
        return float(cell)

    assert [beta(ObjectiveConfig(name)) for name in ("trades", "mart", "stability")] == [6, 5, 6]
    assert beta(ObjectiveConfig("trades", beta=1.5)) == 1.5


@pytest.mark.parametrize("name", ["certified", "mixtrain", "smoothadv"])
def test_a_ramp_rises_as_the_settings_say(name: ObjectiveName) -> None:
    threat = ThreatModel("L2" if name == "smoothadv" else "Linf", eps=0.1)
    for shape in get_args(Shape):
        objective: Any = build_objective(ObjectiveConfig(name, ramp=shape), threat, ramp=0.5)
        objective.progress(1, 20)
        assert objective.risen == Ramp(0.0, 0.5, shape)(0.05) > 0
    with pytest.raises(ValueError, match="shape is 'steep'; legal: linear, smoothed"):
        build_objective(ObjectiveConfig(name, ramp="steep"), threat, ramp=0.5)  # type: ignore[arg-type]
