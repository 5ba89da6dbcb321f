"""Pruning in Hugging Face's Trainer: equal to a plain loop, resumed, loaded by from_pretrained."""

import copy
import os
import socket
import subprocess
import sys
import warnings

import pytest
import small_trainer
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from small_trainer import DENSITY, EPOCHS, RATES, Images, harp, pruned, trainer_of, vit
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    ViTForImageClassification,
    get_scheduler,
)

from robust_plugin import GradualPruner, HydraPruner, MagnitudePruner, dense_state_dict
from robust_plugin.adapters.transformers import prune_with

peft = pytest.importorskip("peft")

K = 578  # of 2,864: sum of max(1, n - int(0.8 n)) over the eight layers


def equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def kept(model, pruner):
    """How many weights of the pruned layers are not zero in a network without a pruner."""
    state = model if isinstance(model, dict) else model.state_dict()
    return sum(int(state[group.name].count_nonzero()) for group in pruner.groups)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that saves after each of its 16 steps: its folder, network and pruner."""
    folder = tmp_path_factory.mktemp("run")
    model, pruner = pruned(folder, args={"save_strategy": "steps", "save_steps": 1})
    return folder, model, pruner


def names_that_decay(model):
    """The rule of the Trainer, written anew: no biases, no normalisation layers."""
    norms = {n for n, layer in model.named_modules() if isinstance(layer, nn.LayerNorm)}
    names = [n for n, _ in model.named_parameters() if "pruner_masks" not in n]
    return {n for n in names if n.rpartition(".")[0] not in norms and not n.endswith("bias")}


def by_a_plain_loop(attach=harp, epochs=EPOCHS):
    """What the Trainer should do, without the Trainer."""
    model, data = vit(), Images()
    pruner, decays = attach(model), names_that_decay(vit())

    def make(groups):
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        own = [{"params": [p for n, p in trained.items() if n in decays], "weight_decay": 0.1}]
        rest = [p for n, p in trained.items() if n not in decays]
        own.append({"params": rest, "weight_decay": 0.0})
        rate = 0.02 if pruner.phase == "prune" else 5e-5
        optimizer = torch.optim.AdamW(own, lr=rate)
        return optimizer, get_scheduler("linear", optimizer, 1, 4 * epochs[pruner.phase])

    for phase in pruner.phases(make, epochs=epochs, steps_per_epoch=4):
        for _ in phase:
            for i in range(0, 32, 8):
                phase.optimizer.zero_grad()
                for j in (i, i + 4):
                    x, y = data.x[j : j + 4], data.y[j : j + 4]
                    (model(pixel_values=x, labels=y).loss / 2).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                phase.optimizer.step()
                phase.scheduler.step()
    return model


def test_one_train_equals_a_plain_loop_of_both_phases(tmp_path):
    model, pruner = pruned(tmp_path, args={"train_sampling_strategy": "sequential"})
    wanted = by_a_plain_loop()
    assert pruner.phase == "finalized" and kept(model, pruner) == K == pruner.budget.total
    assert model.state_dict().keys() == vit().state_dict().keys()
    for name, tensor in wanted.state_dict().items():
        found = model.state_dict()[name]
        assert torch.equal(found == 0, tensor == 0), name
        assert torch.allclose(found, tensor, atol=1e-6), name
    learned = MagnitudePruner(vit(), density=DENSITY)
    learned.finalize()
    assert any(  # the masks have moved, and not by magnitude
        not torch.equal(learned.model.state_dict()[g.name] == 0, model.state_dict()[g.name] == 0)
        for g in pruner.groups
    )


# --- a density that falls while the weights train

SHRINK = {
    "gradual": (
        lambda model: GradualPruner(model, DENSITY),
        {"shrink": 2, "prune": 1, "finetune": 1},
    ),
    "magnitude": (
        lambda model: MagnitudePruner(model, DENSITY, schedule="geometric"),
        {"shrink": 2, "finetune": 2},
    ),
}


class Phases(TrainerCallback):
    """The phase, what is kept and whether there is a state of the optimizer before each step."""

    def __init__(self):
        self.pruner, self.seen = None, []

    def on_pre_optimizer_step(self, args, state, control, optimizer, **_):
        weight = self.pruner.model.classifier._parameters["weight"]
        momentum = optimizer.state.get(weight, {}).get("exp_avg")
        self.seen.append((self.pruner.phase, self.pruner.kept, momentum is not None))


@pytest.mark.parametrize("kind", SHRINK)
def test_one_train_with_a_shrink_phase_equals_a_plain_loop(tmp_path, kind):
    attach, epochs = SHRINK[kind]
    spy = Phases()

    def make(model):
        spy.pruner = attach(model)
        return spy.pruner

    args = {"train_sampling_strategy": "sequential"}
    model, pruner = pruned(tmp_path, make=make, epochs=epochs, args=args, callbacks=[spy])
    assert pruner.phase == "finalized" and kept(model, pruner) == K
    for name, tensor in by_a_plain_loop(attach, epochs).state_dict().items():
        found = model.state_dict()[name]
        assert torch.equal(found == 0, tensor == 0), name
        assert torch.allclose(found, tensor, atol=1e-6), name
    phases = [phase for phase, *_ in spy.seen]
    assert phases == [name for name, count in epochs.items() for _ in range(4 * count)]
    counts = [count for _, count, _ in spy.seen]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 2864 and counts[8] == counts[-1] == K
    # Momentum goes on into fine-tuning, unless a prune phase lies between.
    begins = [spy.seen[i][2] for i in range(1, 16) if phases[i] != phases[i - 1]]
    assert begins == ([True] if kind == "magnitude" else [False, False])


@pytest.mark.parametrize("kind", SHRINK)
def test_a_checkpoint_of_a_shrinking_pruner_continues_to_the_bit(tmp_path, kind):
    attach, epochs = SHRINK[kind]
    options = {"make": attach, "epochs": epochs}
    saving = {"save_strategy": "steps", "save_steps": 1}
    model, _ = pruned(tmp_path / "whole", args=saving, **options)
    for step in (3, 8, 10, 14):  # within each phase, and at the end of shrink
        resume = tmp_path / f"whole/checkpoint-{step}"
        again, pruner = pruned(tmp_path / f"from-{step}", resume=resume, **options)
        assert equal(model, again) and pruner.phase == "finalized", step


@pytest.mark.parametrize("step", [3, 8, 9, 13, 16])
def test_a_checkpoint_of_any_phase_continues_to_the_bit(run, tmp_path, step):
    folder, model, _ = run
    again, pruner = pruned(tmp_path, resume=folder / f"checkpoint-{step}")
    assert equal(model, again) and pruner.phase == "finalized"


def test_checkpoints_load_by_from_pretrained(run, tmp_path):
    folder, model, pruner = run
    for step in (4, 12):
        loaded, info = ViTForImageClassification.from_pretrained(
            folder / f"checkpoint-{step}", output_loading_info=True
        )
        assert not info["missing_keys"] and not info["mismatched_keys"]
        assert all("pruner_masks" in name for name in info["unexpected_keys"])
        if step == 4:  # nothing but norms was trained so far
            named = dict(vit().named_parameters())
            for name, tensor in loaded.state_dict().items():
                assert "layernorm" in name or torch.equal(tensor, named[name]), name
        else:  # its unpruned weights are gone for good
            assert kept(loaded, pruner) == K
        saved = load_file(folder / f"checkpoint-{step}" / "model.safetensors")
        assert kept(dense_state_dict(saved), pruner) <= K + 2 * (step == 4)
    model.save_pretrained(tmp_path)
    loaded, info = ViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and equal(model, loaded) and kept(loaded, pruner) == K


class Spy(TrainerCallback):
    """Notes the groups of the optimizer before each step, and what save_pretrained writes."""

    def __init__(self, model, folder):
        self.model, self.folder, self.seen, self.copies = model, folder, [], []

    def on_pre_optimizer_step(self, args, state, control, optimizer, **_):
        names = {p: n for n, p in self.model.named_parameters()}
        self.seen.append(
            [({names[p] for p in g["params"]}, g["weight_decay"]) for g in optimizer.param_groups]
        )

    def on_step_end(self, args, state, control, **_):
        if state.global_step in (6, 10):
            path = self.folder / f"copy-{state.global_step}"
            self.model.save_pretrained(path, state_dict=dense_state_dict(self.model))
            loaded, info = ViTForImageClassification.from_pretrained(path, output_loading_info=True)
            assert not any(info.values())
            with torch.no_grad():
                x = Images().x
                same = self.model.eval()(x).logits, loaded.eval()(x).logits
            self.copies.append((loaded, same))


def test_optimizers_of_both_phases_and_pruned_copies_on_the_way(tmp_path):
    model = vit()
    spy = Spy(model, tmp_path)
    trainer = trainer_of(model, tmp_path, callbacks=[spy])
    pruner = prune_with(trainer, harp, epochs=EPOCHS, learning_rates=RATES)
    trainer.train()
    first, last = spy.seen[0], spy.seen[-1]
    norms = {n for n, _ in vit().named_parameters() if "layernorm" in n}
    assert [decay for _, decay in first] == [0.1, 0.0, 0.0]
    assert first[0][0] == set() and first[1][0] == norms
    assert len(first[2][0]) == 2 * len(pruner.groups)
    assert all("pruner_masks" in name for name in first[2][0])
    decays = names_that_decay(vit())
    everything = {n for n, _ in vit().named_parameters()}
    assert last == [(decays, 0.1), (everything - decays, 0.0)]
    for loaded, (masked, plain) in spy.copies:
        assert torch.allclose(masked, plain, atol=1e-6)
        assert kept(loaded, pruner) < 2 * K
    assert kept(spy.copies[1][0], pruner) == K
    # The Trainer has its own methods again: a second train() is an ordinary one.
    assert trainer.create_optimizer.__func__ is Trainer.create_optimizer
    trainer.train()
    assert trainer.state.global_step == 16


@pytest.mark.parametrize(
    ("make", "epochs"),
    [
        (harp, {"prune": 3, "finetune": 4}),
        (SHRINK["gradual"][0], {"shrink": 2, "prune": 1, "finetune": 4}),
        (SHRINK["magnitude"][0], {"shrink": 3, "finetune": 4}),
    ],
)
def test_the_best_model_is_one_of_the_fine_tuning_phase(tmp_path, make, epochs):
    class Worse(TrainerCallback):
        """A metric that falls from one evaluation to the next, so that the first one is best."""

        def __init__(self):
            self.at = []

        def on_evaluate(self, args, state, control, metrics, **_):
            self.at.append(state.global_step)

    counts = Worse()
    trainer = trainer_of(
        vit(),
        tmp_path,
        args={
            **{"eval_strategy": "epoch", "save_strategy": "epoch", "greater_is_better": True},
            **{"load_best_model_at_end": True, "metric_for_best_model": "falls"},
        },
        eval_dataset=Images(),
        compute_metrics=lambda _: {"falls": -float(len(counts.at))},
        callbacks=[counts, EarlyStoppingCallback(early_stopping_patience=1)],
    )
    rates = RATES if "prune" in epochs else None
    pruner = prune_with(trainer, make, epochs=epochs, learning_rates=rates)
    trainer.train()
    assert counts.at == [4, 8, 12, 16, 20]  # it stops in the second epoch of fine-tuning
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-16")
    best = load_file(tmp_path / "checkpoint-16" / "model.safetensors")
    own = trainer.model.state_dict()
    assert all(torch.equal(own[name], best[name]) for name in own)
    assert kept(trainer.model, pruner) == K


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForSequenceClassification(
        BertConfig(vocab_size=400, intermediate_size=32, max_position_embeddings=8, **sizes)
    )


def test_magnitude_on_bert_with_max_steps_leaves_embeddings_dense(tmp_path):
    model = bert()
    tokens = [
        {"input_ids": torch.arange(i, i + 6) % 40, "labels": torch.tensor(i % 2)} for i in range(16)
    ]
    trainer = trainer_of(model, tmp_path, args={"max_steps": 3})
    trainer.train_dataset = tokens
    with pytest.warns(UserWarning, match="the largest being bert.embeddings.word_embeddings"):
        pruner = prune_with(
            trainer,
            lambda m: MagnitudePruner(m, density=0.1, rates="global"),
            epochs={"finetune": 1},
        )
    trainer.train()
    assert trainer.state.global_step == 3 and kept(model, pruner) == pruner.budget.total
    assert not any("embeddings" in group.name for group in pruner.groups)
    fresh = bert()
    fresh.load_state_dict(model.state_dict())
    assert not torch.equal(fresh.classifier.weight, bert().classifier.weight)


def test_steps_divide_in_proportion_and_an_early_end_is_said(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 2

    model = vit()
    args = {"max_steps": 10, "eval_strategy": "steps", "eval_steps": 1}
    trainer = trainer_of(model, tmp_path, args=args, eval_dataset=Images(), callbacks=[Stop()])
    pruner = prune_with(trainer, harp, epochs={"prune": 1, "finetune": 2})
    with pytest.warns(UserWarning) as said:
        trainer.train()
    assert any("training ended in the prune phase" in str(each.message) for each in said)
    assert trainer.state.global_step == 2 and pruner.steps.total == 3
    assert kept(model, pruner) == K


def test_an_interrupted_train_resumes_in_the_same_trainer(run, tmp_path):
    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 6:
                trainer.remove_callback(self)
                raise KeyboardInterrupt

    trainer = trainer_of(vit(), tmp_path, args={"save_strategy": "epoch"}, callbacks=[Interrupt()])
    prune_with(trainer, harp, epochs=EPOCHS, learning_rates=RATES)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    with pytest.raises(ValueError, match="begins at step 0, and the pruner has made 6 steps"):
        trainer.train()
    trainer.train(resume_from_checkpoint=True)  # of step 4
    assert equal(run[1], trainer.model)


def test_a_checkpoint_without_masks_is_refused(run, tmp_path):
    dense = trainer_of(vit(), tmp_path, args={"max_steps": 2, "save_strategy": "steps"})
    dense.train()
    with pytest.raises(ValueError, match="begins at step 2, and the pruner has made 0 .* lacks ma"):
        pruned(tmp_path, resume=tmp_path / "checkpoint-2")


OTHERS = {
    "a model": (lambda folder: vit(), TypeError, "trainer is a ViTForImageClassification; give"),
    "an optimizer": (
        lambda folder: trainer_of(
            model := vit(), folder, optimizers=(torch.optim.SGD(model.parameters(), 0.1), None)
        ),
        ValueError,
        "the Trainer has an optimizer already",
    ),
    "model_init": (
        lambda folder: trainer_of(None, folder, model_init=lambda: vit()),
        ValueError,
        "give it model= instead of model_init=",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_trainers_are_refused_before_masks_are_attached(tmp_path, kind):
    make, error, says = OTHERS[kind]
    trainer = make(tmp_path)
    with pytest.raises(error, match=says):
        prune_with(trainer, harp, epochs=EPOCHS)
    assert "pruner_masks" not in "".join(dict(getattr(trainer, "model", trainer).named_modules()))


def test_wrong_arguments_are_refused(tmp_path):
    def prune(make=harp, **options):
        return prune_with(trainer_of(vit(), tmp_path), make, **options)

    with pytest.raises(TypeError, match="make_pruner returned None; give a function"):
        prune(lambda model: None, epochs=EPOCHS)
    with pytest.raises(TypeError, match="make_pruner returned HarpPruner"):
        prune(lambda model: harp(copy.deepcopy(model)), epochs=EPOCHS)
    with pytest.raises(ValueError, match="epochs is {'finetune': 1}, without 'prune'"):
        prune(epochs={"finetune": 1})
    with pytest.raises(ValueError, match="learning_rates is {'rest': 1}; legal: rates of prune"):
        prune(epochs=EPOCHS, learning_rates={"rest": 1})
    trainer = trainer_of(vit(), tmp_path)
    prune_with(trainer, harp, epochs=EPOCHS)
    with pytest.raises(ValueError, match="trainer.train\\(\\) makes the optimizer of each"):
        trainer.create_optimizer()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    one, _ = pruned(tmp_path)
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    done = subprocess.run(
        [sys.executable, small_trainer.__file__, str(tmp_path)],
        env={**os.environ, **places},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for name, tensor in one.state_dict().items():
        first, second = (each["state"][name] for each in found)
        assert torch.equal(first, second), name
        assert torch.allclose(first, tensor, atol=1e-5), name
        assert torch.equal(first == 0, tensor == 0), name
    assert "set ddp_find_unused_parameters=True" in found[0]["refused"]


# --- accelerate alone ---------------------------------------------------------------------------


def accelerated(folder, *, stop=None, resume=False):
    """A loop of accelerate with two batches a step; it saves after the epoch ``stop`` and ends."""
    data, model = Images(), vit()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    pruner = harp(model)
    accelerator.register_for_checkpointing(pruner)
    if resume:
        model.load_state_dict(load_file(folder / "model.safetensors"))

    def prepared(network):
        accelerator.clear()
        return accelerator.prepare(network)

    for phase in pruner.phases(
        lambda groups: accelerator.prepare(torch.optim.AdamW(groups, lr=0.01)),
        epochs=EPOCHS,
        steps_per_epoch=4,
        wrap=prepared,
    ):
        if phase.resumed:
            accelerator.load_state(folder)
        for epoch in phase:
            for i in range(0, 32, 4):
                with accelerator.accumulate(phase.model):
                    x, y = data.x[i : i + 4], data.y[i : i + 4]
                    accelerator.backward(phase.model(pixel_values=x, labels=y).loss)
                    phase.optimizer.step()
                    phase.optimizer.zero_grad()
            assert pruner.phase_done == (phase.name, 4 * epoch + 4)  # optimizer steps
            if stop == (phase.name, epoch):
                accelerator.save_state(folder)
                return model
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The loop of accelerate, without an interruption."""
    return accelerated(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("stop", [("prune", 0), ("prune", 1), ("finetune", 0)])
def test_a_loop_of_accelerate_resumes_to_the_bit(whole, tmp_path, stop):
    accelerated(tmp_path, stop=stop)
    assert equal(whole, accelerated(tmp_path, resume=True))
    assert kept(whole, MagnitudePruner(vit(), density=DENSITY)) == K


# --- peft ---------------------------------------------------------------------------------------


def lora():
    torch.manual_seed(1)
    options = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}
    return peft.get_peft_model(vit(), peft.LoraConfig(r=2, init_lora_weights=False, **options))


def learned_on_lora():
    model, data = lora(), Images()
    pruner = HydraPruner(model, density=DENSITY)
    optimizer = torch.optim.SGD(pruner.set_phase("prune"), lr=0.1)
    pruner.follow(optimizer)
    model(pixel_values=data.x, labels=data.y).loss.backward()
    optimizer.step()
    return model, pruner


def test_lora_stays_dense_and_finalize_passes_the_forwarding_wrapper():
    model, pruner = learned_on_lora()
    names = [group.name for group in pruner.groups]
    assert pruner.budget.full == 2864 and not any("lora" in name for name in names)
    assert names[-1] == "base_model.model.classifier.modules_to_save.default.weight"
    pruner.set_phase("finetune")
    pruner.finalize()
    assert model.state_dict().keys() == lora().state_dict().keys() and kept(model, pruner) == K


@pytest.mark.parametrize("safe", [False, True])
def test_merging_lora_reaches_the_pruned_weights(safe):
    model, pruner = learned_on_lora()
    pruner.set_phase("finetune")
    layer = model.base_model.model.vit.layers[0].attention.q_proj
    mask = pruner.masks[[g.members[0].layer for g in pruner.groups].index(layer.base_layer)].mask
    wanted = (layer.base_layer.weight + layer.get_delta_weight("default")).detach() * mask
    merged = model.merge_and_unload(safe_merge=safe)
    logits = merged(pixel_values=Images().x).logits
    pruner.finalize()
    assert torch.equal(merged.vit.layers[0].attention.q_proj.weight, wanted)
    assert torch.equal(merged(pixel_values=Images().x).logits, logits)
    assert merged.state_dict().keys() == vit().state_dict().keys()
    assert kept(merged, MagnitudePruner(vit(), density=DENSITY)) == K


def test_merging_lora_while_masks_are_learned_is_refused():
    model, pruner = learned_on_lora()
    model.merge_adapter()
    with pytest.raises(ValueError, match="something was written to .*base_layer.weight while"):
        pruner.set_phase("finetune")


def test_a_trainer_of_a_peft_model_warns_that_it_saves_adapters_alone(tmp_path):
    with pytest.warns(UserWarning, match="the Trainer saves the adapters of a peft model alone"):
        prune_with(trainer_of(lora(), tmp_path), harp, epochs=EPOCHS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        prune_with(trainer_of(vit(), tmp_path), harp, epochs=EPOCHS)
