"""``AutoAttack``: run all component attacks of one version in order, on batches of points.

Finished batches can be kept in a folder, the journal, from which an interrupted attack continues.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robust_plugin.adapters.autoattack.component import Component
from robust_plugin.adapters.autoattack.library import library
from robust_plugin.attacks.cascade import cascade
from robust_plugin.attacks.contract import Attack, SuspectNetwork, guarded
from robust_plugin.attacks.logits import check_logits
from robust_plugin.copies.fast import fast_copy
from robust_plugin.evaluation.sanity import findings, refuse_random
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.distributed import rank_and_world
from robust_plugin.runtime.journal import Fingerprint, Journal
from robust_plugin.runtime.progress import ProgressOption, check_progress
from robust_plugin.threat.layers import UnitBox
from robust_plugin.threat.model import ThreatModel, check_threat

Version = Literal["standard", "plus", "rand", "screen"]

# The components of the library's versions, and of "screen", which costs a fifth of "standard".
_COMPONENTS: dict[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
    "screen": ("apgd-ce", "apgd-t"),
}
# The DLR loss needs the three largest logits, the targeted DLR loss the four largest.
_LEAST_CLASSES = 4
# Number of points that the network is checked on before the attack.
_CHECKED = 32


@explain_wrong_calls
@dataclass(frozen=True)
class AutoAttack:
    """AutoAttack as an attack: ``attack(model, x, y) -> x_adv``.

    Give all points in one call; the attack makes the batches itself. For a point that is not
    fooled, the clean input is returned. Under torch.distributed the processes share the batches and
    each of them returns all points, so every process must call the attack.

    Attributes:
        threat: threat model with norm Linf, L2 or L1.
        version: ``"standard"``, ``"plus"``, ``"rand"`` for networks that are random on purpose, or
            ``"screen"``: only apgd-ce and apgd-t, a quick estimate that must not be reported as
            AutoAttack.
        seed: seed of the random starts; None takes a new one from torch's global generator at each
            call.
        batch_size: number of points attacked at once; the results depend on it.
        journal: folder in which finished batches are kept, so that an interrupted evaluation
            continues from there; None to keep nothing.
        progress: True for a progress bar of tqdm, or a function that is called with a ``Progress``
            at the start of each component, after each of its batches and at its end; False to
            report nothing. The total of a component is the number of points that no component
            before it has fooled (under torch.distributed, of the points of the first process).

    Raises:
        TypeError: if ``threat`` is not a ThreatModel.
        ValueError: for an unknown version, an illegal batch size or seed, or a journal without a
            seed. A call of the attack raises it for fewer than four classes, inputs that are not
            images (except with ``"rand"`` and ``"screen"``), a random network (except with
            ``"rand"``), the journal of another evaluation, or several processes without a seed.
        ImportError: raised by a call of the attack if the library is not installed.

    Warns:
        SuspectNetwork: by a call of the attack, for each property of the network that would mislead
            gradient attacks, such as zero gradients.
    """

    threat: ThreatModel
    version: Version = "standard"
    seed: int | None = None
    batch_size: int = 250
    journal: Path | None = field(default=None, repr=False, compare=False)
    progress: ProgressOption = field(default=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_threat(self.threat)
        check_progress(self.progress)
        if self.version not in get_args(Version):
            raise ValueError(f"version is {self.version!r}; legal: {', '.join(_COMPONENTS)}.")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size!r}; legal: at least 1, whole.")
        if not (self.seed is None or isinstance(self.seed, int)):
            raise ValueError(f"seed is {self.seed!r}; legal: a whole number, or None.")
        if self.journal is not None and self.seed is None:
            raise ValueError("a journal goes on with the same noise; give a seed.")

    @property
    def name(self) -> str:
        """The name of the attack in reports, such as ``"AutoAttack"``."""
        if self.version == "screen":
            return "screening (apgd-ce, apgd-t)"
        return "AutoAttack" if self.version == "standard" else f"AutoAttack {self.version}"

    @property
    def whole(self) -> bool:
        """Always True: ``evaluate`` must give this attack all points in one call."""
        return True

    @property
    def for_random(self) -> bool:
        """Whether the version is made for networks that are random on purpose."""
        return self.version == "rand"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return adversarial inputs, shape [B, ...].

        Args:
            model: the network; the training flags of its layers are restored at the end.
            x: inputs, shape [B, ...], within [low, high].
            y: labels, shape [B].
        """
        return guarded(self._run, self.threat)(model, x, y)

    def check_classes(self, classes: int) -> None:
        """Raise unless the attack can handle this number of classes.

        Call this before training, so that the error does not come after hours of training.

        Args:
            classes: number of classes of the network.

        Raises:
            ImportError: if the library is not installed.
            ValueError: for fewer than four classes.
        """
        library()
        if classes < _LEAST_CLASSES:
            instead = (
                "No attack here moves in L1 with so few; take torchattack('EADL1', threat)"
                if self.threat.norm == "L1"
                else "Take pgd(threat, loss='margin', restarts=..., keep='best')"
            )
            raise ValueError(
                f"the model has {classes} classes; AutoAttack's DLR loss needs {_LEAST_CLASSES}. "
                f"{instead}."
            )

    def check_points(self, x: Tensor) -> None:
        """Raise unless the attack can handle inputs of this shape.

        The component Square needs images. Without this check, its error would come after other
        components have run.

        Args:
            x: inputs, shape [B, ...].

        Raises:
            ValueError: if the version contains Square and the inputs are not images, shape [B,
                channels, height, width].
        """
        if x.dim() != 4 and "square" in _COMPONENTS[self.version]:
            raise ValueError(
                f"inputs have shape {tuple(x.shape)}; AutoAttack's Square draws squares on images, "
                "[batch, channels, height, width]. Take version='screen' (apgd-ce and apgd-t), or "
                "give images that the model reshapes."
            )

    @property
    def versions(self) -> dict[str, str]:
        """The version of the installed library, as ``{name of the package: version}``."""
        package = library()[0]
        return {package: metadata.version(package)}

    def _run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Check the network, run all components, and return adversarial inputs, shape [B, ...]."""
        self._check_network(model, x, y)
        if self.seed is None and rank_and_world()[1] > 1:
            raise ValueError("several processes need the same noise; give a seed.")
        seed = self.seed if self.seed is not None else int(torch.randint(2**31, (1,)))
        journal = None if self.journal is None else self._open(self.journal, model, x, y)
        fast = model if self.version == "rand" else fast_copy(model, x[: self.batch_size])
        box = UnitBox(fast, self.threat, x)

        def component(name: str) -> Attack:
            def attack(_: nn.Module, x: Tensor, y: Tensor) -> Tensor:
                run = Component(name, self.version, box.threat, x.device)
                x_adv = box.grown(run(box, box.shrunk(x), y))
                # Scaling back to [low, high] may round a point out of the ball.
                return x_adv if box.width == 1 else self.threat.project(x_adv, x)

            return attack

        return cascade(
            model,
            x,
            y,
            {name: component(name) for name in _COMPONENTS[self.version]},
            seed=seed,
            batch_size=self.batch_size,
            journal=journal,
            progress=self.progress,
            title=self.name,
        )

    def _check_network(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        """Raise or warn if the network would make the attack impossible or its results misleading.

        Args:
            model: the network.
            x: inputs, shape [B, ...]; the first 32 points are checked.
            y: labels, shape [B].

        Raises:
            ValueError: if the attack cannot handle the number of classes or the shape of the
                inputs, or, except with ``"rand"``, if the network is random.
        """
        few, labels = x[:_CHECKED], y[:_CHECKED]
        with torch.no_grad():
            logits = check_logits(model(few), labels)
            self.check_classes(logits.shape[1])
            self.check_points(few)
            if self.for_random:  # noise would make the gradient checks meaningless
                return
            refuse_random(model, few, logits)
        for found in findings(model, few, labels):  # ``evaluate`` reports them and hides these
            warnings.warn(f"{self.name}: {found}.", SuspectNetwork, stacklevel=5)

    def _open(self, folder: Path, model: nn.Module, x: Tensor, y: Tensor) -> Journal:
        """Return the journal, the record of finished batches, that is in a folder.

        Args:
            folder: the folder; it is made if it does not exist.
            model: the network.
            x: clean inputs, shape [B, ...].
            y: labels, shape [B].

        Raises:
            ValueError: if the journal is of another network, other points or other settings.
        """
        ((package, version),) = self.versions.items()
        fingerprint = {
            "model": str(Fingerprint(model)),
            "points": str(Fingerprint(x, y)),
            "threat model": f"{self.threat!r}",
            "version": self.version,
            "seed": str(self.seed),
            "batch size": str(self.batch_size),
            "library": f"{package} {version}",
        }
        journal = Journal(folder, fingerprint)
        if not self.for_random:
            with torch.no_grad():
                journal.check_answers(model(x[: self.batch_size]))
        return journal
