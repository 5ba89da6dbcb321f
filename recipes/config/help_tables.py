"""What the help of each command says beside the descriptions of the settings.

``COMMON`` describes the options that all commands with settings share. ``TRAINING``, ``COMPARING``
and ``EVALUATING`` list the settings that ``--help`` shows. ``USAGE`` is the help without a command.
"""

from __future__ import annotations

from collections.abc import Mapping

# For each group, the settings that most users set: the value as the help names it, and what it is.
Groups = Mapping[str, Mapping[str, tuple[str, str]]]

TRAINING: Groups = {
    "network and data": {
        "model": ("NAME", "network: a name, or package.module:function of your own"),
        "checkpoint": ("FILE", "weights of a trained dense network; skips pre-training"),
        "data.name": ("NAME", "digits, mnist5k, folder, table, huggingface, cifar10, ..."),
        "data.folder": ("FOLDER", "folder with the files of the data set"),
    },
    "threat model and loss": {
        "threat.norm": ("NORM", "norm of a change of the input: Linf or L2"),
        "threat.eps": ("EPS", "largest change of the input, pixels in [0, 1]: 8/255"),
        "objective.name": ("LOSS", "loss: adversarial, trades, mart, certified, ..."),
    },
    "pruning": {
        "density": ("SHARE", "share of weights or channels to keep: 0.1 keeps 10 %"),
        "structure": ("UNIT", "what is pruned: weights or channels"),
    },
    "training": {
        "pretrain.epochs": ("N", "epochs that train the dense network"),
        "prune.epochs": ("N", "epochs that learn which weights are kept"),
        "finetune.epochs": ("N", "epochs that train the weights that are kept"),
        "finetune.lr": ("RATE", "learning rate of fine-tuning at its first step"),
        "data.batch_size": ("N", "training points per step"),
    },
    "evaluation on the test points": {
        "evaluation.autoattack": ("N", "points that AutoAttack attacks; 0 skips it"),
        "evaluation.verify": ("N", "points that proofs are tried on; 0 skips them"),
    },
    "machine": {
        "device": ("DEVICE", "cpu, cuda, cuda:1, ...; auto takes a GPU if there is one"),
        "seed": ("N", "seed of all random numbers"),
    },
}

# Settings of TRAINING that the help of compare shows too.
_SHARED = (
    *("model", "data.name", "data.folder", "threat.eps", "objective.name"),
    *("pretrain.epochs", "prune.epochs", "finetune.epochs", "evaluation.autoattack", "device"),
)

COMPARING: Groups = {
    "what is compared": {
        "densities": ("SHARE ...", "shares of weights to keep, separated by spaces"),
        "seeds": ("N ...", "seeds; each has a dense network of its own"),
        "lrs": ("RATE ...", "learning rates of fine-tuning that every method tries"),
        "jobs": ("N", "trainings that run at the same time"),
    },
    "what all methods share": {
        f"base.{path}": shown
        for table in TRAINING.values()
        for path, shown in table.items()
        if path in _SHARED
    },
}

EVALUATING: Groups = {
    "network and data": {
        "model": ("NAME", "network: a name, or package.module:function of your own"),
        "checkpoint": ("FILE", "weights of the network"),
        "data.name": ("NAME", "digits, mnist5k, folder, table, huggingface, cifar10, ..."),
        "data.folder": ("FOLDER", "folder with the files of the data set"),
        "n": ("N", "test points to evaluate, the first ones; None takes all"),
    },
    "attacks": {
        "threat.norm": ("NORM", "norm of a change of the input; short: --norm"),
        "threat.eps": ("EPS", "largest change of the input: 8/255; short: --eps"),
        "attacks": ("NAME ...", "pgd, autoattack, screen, fab, ...; short: --attack"),
        "steps": ("N", "gradient steps of pgd"),
        "checks": ("N", "points of the checks for obfuscated gradients; 0: none"),
    },
    "proofs": {
        "certify": ("METHOD", "none, ibp, crown-ibp, cascade or cascade-fixed"),
        "seconds": ("NUMBER", "time limit per point of the two cascades"),
    },
    "machine": {
        "batch_size": ("N", "test points per batch"),
        "device": ("DEVICE", "cpu, cuda, cuda:1, ...; auto takes a GPU if there is one"),
        "seed": ("N", "seed of all random numbers"),
    },
}

# What --out is, by command; the other commands have the text of "".
_OUT = {
    "": "folder for the results; an unfinished run in it is continued",
    "evaluate": "folder for the reports, or the name of a .json file for the numbers alone",
}


def common_options(command: str, *, config: str, out: str) -> dict[str, str]:
    """Return the descriptions of the options that all commands with settings share.

    Args:
        command: the command.
        config: the default of --config; empty for none.
        out: the default of --out; empty for none.
    """
    about_out = _OUT.get(command, _OUT[""])
    return {
        "--config PRESET": f"preset or YAML file with values of all options [{config or None}]",
        "--out FOLDER": f"{about_out} [{out or None}]",
        "--dry-run": "print the plan, its time and its files, and do nothing else",
        "--quiet": "show no progress and no hints, only results and errors",
        "--help, --help-all": "print this short help, or the help of all options",
    }


USAGE = """\
robust-plugin COMMAND [--config PRESET] [--out FOLDER] [--dry-run] [--quiet] [OPTIONS]

  gradual     the one to take: density falls while the weights train, the last cut is learned
  magnitude   Sehwag 2019: robust training, magnitude pruning (at once or gradually), fine-tuning
  hydra       HYDRA: importance scores learned on the robust loss
  harp        HARP: scores and layer densities learned on the robust loss
  compare     several methods on equal terms, each with its own tuned learning rate
  evaluate    PGD, AutoAttack, security curve and proofs for a finished run or any saved network
  channels    for finished runs that pruned channels, a table before and after: RUN [RUN ...]
  list        all presets, with the densities that papers have published accuracies for

  robust-plugin COMMAND --help       the options that most users need
  robust-plugin COMMAND --help-all   all options
  robust-plugin --version            versions of this package, of torch and of Python

Every setting is an option: robust-plugin gradual --config gradual/digits --density 0.05 \\
--threat.eps 8/255. To continue an interrupted run, give the same command again. With --dry-run,
all commands but channels and list only print what they would do, how long it would take and which
files they would write. On several GPUs:

  torchrun --nproc-per-node 8 -m robust_plugin.recipes.cli hydra --config hydra/cifar10-wrn28-4
"""

COMPARE = (
    "Compare methods at several densities and seeds on equal terms; the result is a table with one "
    "row per method. The preset names the methods. For others, write a YAML file with the keys "
    "extends (a preset) and rows (the methods), and give it as --config."
)
EVALUATE = (
    "Measure the accuracy of a network under attack, and what can be proved about it. RUN is the "
    "folder of a finished run, whose settings are then the defaults. Without one, give --model and "
    "--checkpoint of a network."
)
CHANNELS = """\
usage: robust-plugin channels RUN [RUN ...]

Print a table of accuracy, size and speed before and after the removal of channels. Each RUN is the
folder of a finished run with --structure channels. before_after.json and before_after.txt in the
folder get the same numbers.
"""
LIST = """\
usage: robust-plugin list

Print all presets, the suffixes that their names may have, and the densities that papers have
published accuracies for. A preset is what --config of the other commands takes.
"""
