"""The Pruner: masks from scores and rates, each fixed or learned, on any model.

A score ranks a weight (or channel) within its layer, and a rate is the density of a layer. The
methods of three papers are combinations of the two:

|                | rates uniform    | rates given (ERK, LAMP) | rates learned  |
|----------------|------------------|-------------------------|----------------|
| scores fixed   | Sehwag 2019, LWM | magnitude at good rates | HARP rate-only |
| scores learned | HYDRA            | HARP score-only         | HARP           |
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.budget.budget import Budget, Unit
from robust_plugin.budget.control import Control, FixedRates, PhaseSteps, RateControl
from robust_plugin.budget.rates import Rates
from robust_plugin.budget.schedules import Schedule
from robust_plugin.masks import detach
from robust_plugin.masks.attach import check_layers, write_zeros
from robust_plugin.masks.groups import Group, Groups
from robust_plugin.masks.prunable import refuse_wrapped
from robust_plugin.pruning import following, phases, saving
from robust_plugin.pruning.attachment import attach_masks, check_choices, find_groups
from robust_plugin.pruning.loading import AfterLoad, refuse_other_budget
from robust_plugin.pruning.phase_run import MakeOptimizer, PhaseRun, run_phases
from robust_plugin.pruning.phases import Learnable, Phase, PhaseName
from robust_plugin.pruning.progress import Progress
from robust_plugin.pruning.pruner_state import PrunerState
from robust_plugin.pruning.scores import Scores
from robust_plugin.pruning.shrinking import choose_by_magnitude, shrinking_of
from robust_plugin.runtime.calls import explain_wrong_calls


@explain_wrong_calls
class Pruner:
    """Attaches masks to a model and learns which weights or channels they keep.

    Args:
        model: the network, pre-trained and not wrapped (no DDP, no torch.compile). Masks are
            attached to it in place.
        density: k, the share of the dense network that is kept, 0 < k <= 1, counted as ``budget``
            says; None if a pattern or a dict of rates implies it.
        learn: what the prune phase trains: any of ``"scores"`` and ``"rates"`` (layer densities).
        scores: the initial scores: a name, a function of the weight, or tensors by parameter name.
        rates: the density of each layer: ``"uniform"``, ``"erk"``, ``"lamp"``, ``"global"``, a
            function, or densities by parameter name. Learned densities start from these.
        budget: what ``density`` is a share of: ``"params"``, the prunable weights; ``"flops"``,
            their multiply-adds; or, for groups of channels only, ``"channels"``, which allows the
            FLOPs of the network that keeps this share of the channels of each group. For groups of
            channels, all three count the whole network that is left.
        control: how learned layer densities meet the budget: ``"held"`` meets it exactly at every
            step, with a budget that falls to the target during the phase; ``"hinge"`` is the
            penalty of the HARP paper (see ``budget_penalty``).
        gamma_step: growth of gamma, the factor of the hinge penalty, per epoch of 391 steps.
        pattern: an n:m pattern such as ``"2:4"``, given instead of a density; or ``"n:4"`` with
            the letter n, given together with a density: each layer keeps n of every 4 weights, with
            its own n near its density, and all layers together keep at most the budget.
        groups: the groups of weights or channels, each with one mask (from ``channel_groups``,
            say); None for one group per weight.
        round_to: block size in channels, such as 16 or 8, the number of floats that the CPU
            computes at once with AVX-512 or AVX2. A group whose number of channels it divides keeps
            whole blocks, at least one.
        schedule: how the density falls: ``"at_once"``, or along ``"geometric"``, ``"cubic"`` or a
            function (``budget/schedules.py``) in a shrink phase that comes first. There the weights
            train, and masks by magnitude keep less and less of them, at ``rates`` that are computed
            anew at each cut.
        last_cut: share of the shrunk network that the prune phase keeps, if something is learned:
            with 0.5, the shrink phase ends at twice the density.
        exclude: layers, or names of layers, that stay dense.
        example_inputs: inputs of one forward pass, needed for budgets in FLOPs and channels; None
            takes those that ``channel_groups`` was given.

    Attributes:
        groups: the groups of weights or channels that are pruned.
        left_dense: names of the weights that stay dense because the pattern does not fit them.
        masks: scores, rate logit and mask of each group, in the order of ``groups``.
        order: the phases of this pruner, in order.
        example_inputs: inputs of one forward pass, or None.
        frozen: parameters that were frozen before the pruner was attached; they stay frozen.

    Raises:
        TypeError: if the model is no nn.Module, or round_to no integer.
        ValueError: naming an illegal value and what is legal; the model is then unchanged.
    """

    def __init__(
        self,
        model: nn.Module,
        density: float | None = None,
        *,
        learn: Collection[Learnable] = (),
        scores: Scores = "scaled_magnitude",
        rates: Rates = "uniform",
        budget: Unit = "params",
        control: Control = "held",
        gamma_step: float = 0.01,
        pattern: str | None = None,
        groups: Sequence[Group] | None = None,
        round_to: int = 1,
        schedule: Schedule = "at_once",
        last_cut: float = 0.5,
        exclude: Collection[str | nn.Module] = (),
        example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    ) -> None:
        refuse_wrapped(model)
        self.pattern = check_choices(model, learn, control, pattern)
        shrinking = shrinking_of(schedule, last_cut, learns=bool(learn))
        found = find_groups(model, groups, exclude)
        if example_inputs is None and isinstance(groups, Groups):
            example_inputs = groups.example_inputs
        self.model = model
        self.example_inputs = example_inputs
        self.learn = frozenset(learn)
        self.round_to = round_to
        self.frozen = frozenset(p for p in model.parameters() if not p.requires_grad)
        self._attached = attach_masks(
            model,
            found,
            density,
            learn=self.learn,
            scores=scores,
            rates=rates,
            unit=budget,
            control=control,
            gamma_step=gamma_step,
            pattern=self.pattern,
            round_to=round_to,
            shrinking=shrinking,
            example_inputs=example_inputs,
        )
        self.groups, self.left_dense = self._attached.groups, self._attached.left_dense
        self.masks = self._attached.masks
        self._state = PrunerState(
            model, self._attached, learn=self.learn, frozen=self.frozen, name=type(self).__name__
        )
        self.order = self._state.order
        self._hooks = (
            model.register_load_state_dict_pre_hook(refuse_other_budget),  # type: ignore[no-untyped-call]
            model.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
                AfterLoad(model, self._after_load)
            ),
        )

    def __repr__(self) -> str:
        """Return one line with the phase, the number of groups, and how much is kept."""
        return (
            f"{type(self).__name__}(phase={self.phase!r}, {len(self.groups)} groups, keeps "
            f"{self.kept:,} of {self.budget.full:,}, budget {self.budget.density:.4g})"
        )

    @property
    def phase(self) -> Phase:
        """``"attached"``, ``"shrink"``, ``"prune"``, ``"finetune"`` or ``"finalized"``."""
        return self._state.phase

    @property
    def budget(self) -> Budget:
        """The largest cost that may be kept, and the cost of each weight or channel."""
        return self._state.budget

    @property
    def control(self) -> RateControl:
        """What makes learned layer densities meet the budget; it does nothing if none are."""
        return self._state.control

    @property
    def progress(self) -> Progress:
        """How many steps of each phase are done, for saved states."""
        return self._state.progress

    @property
    def steps(self) -> PhaseSteps:
        """How many steps of the shrink or prune phase are done, and the length of that phase."""
        return self._state.steps

    @property
    def kept(self) -> int:
        """The cost of what the masks keep now, in parameters or FLOPs, as the budget counts it."""
        return int(self.budget.cost([mask.kept for mask in self.masks]))

    @property
    def densities(self) -> dict[str, float]:
        """The share of its weights or channels that each group keeps now, by name of the group."""
        return {
            group.name: mask.kept / group.size
            for group, mask in zip(self.groups, self.masks, strict=True)
        }

    def budget_penalty(self) -> Tensor:
        """Return the penalty to add to the loss in the prune phase, a scalar.

        With ``control="hinge"`` and learned rates it is gamma(epoch) L_hw, HARP equation 4, where
        L_hw is by how much the densities exceed the budget. Otherwise it is zero.

        Raises:
            ValueError: if the pruner learns and its prune phase has not begun.
        """
        phases.check_trains(self.phase, self.order)
        self._state.penalised = True
        control = self.control if self.phase == "prune" else FixedRates()
        return control.penalty(self.masks, self.steps)

    def update_masks(self) -> None:
        """Compute every mask anew from its scores and the number of weights or channels to keep.

        After ``follow``, each step of the prune phase does this. Call it yourself after you have
        written scores by hand.
        """
        self.progress.updated = self.progress.shrunk  # scores from before do not last
        self._state.choose()
        self._state.record()

    def set_phase(self, phase: PhaseName) -> list[dict[str, Any]]:
        """Begin a phase: freeze what it does not train, and return what an optimizer shall train.

        ``"shrink"``, for pruners with a schedule, trains everything except scores and rates, while
        the density falls. ``"prune"``, for pruners that learn, trains scores, rates and the scales
        and shifts of normalisation layers, and freezes the weights. ``"finetune"`` fixes the masks
        within the budget and trains everything except scores and rates. Parameters that were
        frozen before the pruner was attached stay frozen. Wrap the model in DDP after this call.

        Returns:
            list: param groups for a new optimizer. In the prune phase, the first one holds scores
            and rates, and sets weight decay to 0, which would pull every layer's density to one
            half.

        Raises:
            ValueError: if the phase is unknown, or not in the order shrink, prune, finetune,
                finalize; or if a shrink or prune phase ends without a step of the followed
                optimizer, so that nothing was pruned or learned. In the prune phase, a call of
                ``update_masks`` counts as a step, as after scores were written by hand.
        """
        return self._state.begin(phase)

    def follow(
        self,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        *,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        """From now on, after each step of ``optimizer``, update density, learned rates and masks.

        A step that a GradScaler skips does not count.

        Args:
            optimizer: an optimizer of the parameters that the phase trains; or a wrapper that
                holds it as ``optimizer`` (accelerate) or ``base_optimizer`` (SAM); or a list of
                optimizers, in the order in which they step.
            epochs: number of epochs of the phase; required in the shrink phase, and if rates are
                learned.
            steps_per_epoch: number of optimizer steps (not batches) per epoch; required as
                ``epochs`` is.

        Raises:
            TypeError: if ``optimizer`` is no optimizer.
            ValueError: if the pruner is not in the shrink or prune phase, the optimizer lacks
                parameters of the phase or is an LBFGS, or a length is no whole number, or required
                and missing.
        """
        following.follow(self._state, optimizer, epochs=epochs, steps_per_epoch=steps_per_epoch)

    def phases(
        self,
        make_optimizer: MakeOptimizer | Mapping[str, MakeOptimizer],
        *,
        epochs: Mapping[str, int],
        steps_per_epoch: int,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
    ) -> Iterator[PhaseRun]:
        """Yield the phases in order, each with its optimizer; finalize after the last one.

        Each phase is set, its optimizer made and, in the shrink and prune phase, followed. A
        network whose state_dict was loaded continues in the phase and epoch of that state.

        The fine-tuning phase trains the same parameters as the shrink phase. If no prune phase lies
        between them, its optimizer takes over the state of the former one, such as its momentum.

        Args:
            make_optimizer: function of param groups that returns an optimizer, or a tuple of
                optimizer and learning rate scheduler; or such functions by name of the phase. If
                there is none for ``"finetune"`` right after ``"shrink"``, the optimizer stays.
            epochs: number of epochs by name of the phase: ``"shrink"``, if the pruner has a
                schedule; ``"prune"``, if it learns; and ``"finetune"``.
            steps_per_epoch: number of optimizer steps (not batches) per epoch.
            wrap: function that wraps the network anew in each phase, such as
                ``DistributedDataParallel``; None for the network itself.

        Raises:
            TypeError: if ``epochs`` is no dict.
            ValueError: if a phase is unknown or missing, or a number is not above 0.

        >>> import torch
        >>> model = nn.Linear(8, 2)
        >>> pruner = Pruner(model, density=0.25, learn={"scores"})
        >>> sgd = lambda params: torch.optim.SGD(params, lr=0.1)
        >>> for phase in pruner.phases(sgd, epochs={"prune": 1, "finetune": 2}, steps_per_epoch=1):
        ...     for epoch in phase:
        ...         phase.optimizer.zero_grad()
        ...         model(torch.rand(4, 8)).square().mean().backward()
        ...         phase.optimizer.step()
        >>> int(model.weight.count_nonzero()), pruner.phase
        (4, 'finalized')
        """
        return run_phases(
            self, make_optimizer, epochs=epochs, steps_per_epoch=steps_per_epoch, wrap=wrap
        )

    @property
    def phase_done(self) -> tuple[str, int]:
        """The last phase that made steps, and how many it has made, also before a resume.

        Once shrinking is over, it is the next phase, with 0 steps.
        """
        name, steps = self.progress.last
        return (name if name in self.order else "finetune"), steps

    def count_step(self) -> None:
        """Count a step of the fine-tuning phase, for the state that a resume begins from."""
        self.progress.finetune_steps += 1
        self._state.record()

    def set_density(self, density: float) -> None:
        """Prune further, by the magnitude of the weights as they are now (iterative pruning).

        Sehwag 2019, section 3: alternate this with fine-tuning, along a schedule of densities.
        Weights that were pruned before are zero, so they rank last.

        Args:
            density: share of the dense network that is kept from now on, counted as the budget
                does; at most the present density.

        Raises:
            ValueError: if the pruner learns something, has a pattern or is finalized, or the
                density is outside of (0, 1] or above the present one.
        """
        fixed = bool(self.learn) or self.pattern is not None or "shrink" in self.order
        phases.check_prunes_further(self.phase, fixed=fixed, name=type(self).__name__)
        planned = self._attached.plan(density, most=tuple(mask.kept for mask in self.masks))
        phases.check_lower(density, planned.budget, self.budget)
        self._state.budget = planned.budget
        choose_by_magnitude(self.groups, self.masks, planned.counts)
        if self.phase == "finetune":
            write_zeros(self.model)
        self._state.record()

    def lend_masks(self, model: nn.Module) -> None:
        """Overwrite the masks of a copy of the network (an EMA, say) with the present masks.

        A copy of the network has the masks of the moment when it was made, until its scores are
        averaged with those of the network. Call this before another copy is evaluated.

        Args:
            model: copy of the network with masks, or a wrapper with such a copy as ``module``.

        Raises:
            ValueError: if ``model`` is no copy of the network.
        """
        detach.lend_masks(self.model, model)

    def finalize(self, model: nn.Module | None = None) -> None:
        """Turn every masked layer back into the plain layer that it was, with zeros in its weight.

        Args:
            model: a copy of the network (an EMA, the best one so far) to finalize with the present
                masks of this pruner; None for the network itself, which ends the pruning.

        Raises:
            ValueError: if the pruner is finalized already, ``model`` is no copy of the network, or
                the pruner learns and has learned nothing (see ``set_phase``).
        """
        phases.check_finalizes(
            self.phase,
            learns=bool(self.learn),
            learned=self.progress.has_learned,
            name=type(self).__name__,
        )
        if model is not None and model is not self.model:
            self.lend_masks(model)
            detach.finalize(model)
            return
        self._state.check_shrunk()
        self._state.check_learned()
        check_layers(self.model, self._state.places)
        self._state.end_shrinking(learn_next=False)
        self._state.settle()
        if self.kept > self.budget.total:
            raise ValueError(
                f"the masks keep a cost of {self.kept:,}, and the budget is "
                f"{int(self.budget.total):,}, so that masks were written or chosen by hand; "
                "attach a new pruner to the network as it was before, or load a saved state."
            )
        detach.finalize(self.model)
        for hook in self._hooks:
            hook.remove()
        for parameter in self.model.parameters():
            parameter.requires_grad_(parameter not in self.frozen)
        self._state.phase = "finalized"

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs besides the model's own state_dict, as plain JSON data."""
        return saving.state_of(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that ``state_dict`` returned; load the model's state_dict first.

        Raises:
            ValueError: if the state is of a pruner with other settings or another budget, or only
                one of that pruner and this one is finalized.
        """
        saving.load(self._state, state)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise a ValueError unless ``load_state_dict`` can load ``state`` into this pruner.

        It must be of a pruner with the same settings, and both or none must be finalized.
        """
        saving.check_saved(self._state, state)

    def _after_load(self) -> None:
        saving.after_load(self._state)
