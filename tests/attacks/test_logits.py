"""Inputs that a network cannot take: a sentence from every certifier, and no error of torch's."""

import pytest
import torch
from torch import nn

from robust_plugin import IBP, Smoothed, ThreatModel, ibp_margins, pgd, verify
from robust_plugin.adapters.auto_lirpa import LiRPA
from robust_plugin.attacks.logits import refuse_inputs

THREAT = ThreatModel("Linf", eps=0.02)
CALLS = {
    "IBP": lambda model, x, y: IBP(THREAT)(model, x, y),
    "ibp_margins": lambda model, x, y: ibp_margins(model, x, y, THREAT),
    "LiRPA": lambda model, x, y: LiRPA(THREAT)(model, x, y),
    "LiRPA.bounds": lambda model, x, y: LiRPA(THREAT).bounds(model, x, y),
    "verify": lambda model, x, y: verify(model, x, y, {"IBP": IBP(THREAT), "PGD": pgd(THREAT)}),
    "certify": lambda model, x, y: Smoothed(0.1, n=10).certify(model, x, y),
    "predict": lambda model, x, y: Smoothed(0.1, n=10).predict(model, x),
}


@pytest.mark.parametrize("name", CALLS)
def test_one_image_without_its_batch_dimension(cnn, batch, name):
    model, (x, y) = cnn(), batch
    with pytest.raises(ValueError, match=r"of shape \(1, 8, 8\).*; legal: .* One point is x\[:1\]"):
        CALLS[name](model, x[0], y[:1])
    with pytest.raises(ValueError, match=r"One point is x\[:1\]|the batch is empty, or not of"):
        CALLS[name](model, x[0, 0, 0, 0], y[0])
    CALLS[name](model, x[:1], y[:1])


@pytest.mark.parametrize("name", sorted(set(CALLS) - {"predict"}))
def test_labels_that_are_not_one_a_point(cnn, batch, name):
    model, (x, y) = cnn(), batch
    for wrong in (y[:3], y[0], y[:, None]):
        with pytest.raises(ValueError, match="labels have shape .* legal: one label a point"):
            CALLS[name](model, x, wrong)
    with pytest.raises(TypeError, match="labels are a list; give a tensor"):
        CALLS[name](model, x, y.tolist())


@pytest.mark.parametrize("name", CALLS)
def test_inputs_and_weights_of_two_dtypes(cnn, batch, name):
    model, (x, y) = cnn(), batch
    message = r"inputs are torch.float64 and the model's weights torch.float32; give x.to\("
    with pytest.raises(ValueError, match=message):
        CALLS[name](model, x.double(), y)
    CALLS[name](model.double(), x.double(), y)


@pytest.mark.parametrize("name", CALLS)
def test_one_output(batch, name):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with pytest.raises(ValueError, match=r"one output per point; .*torch.cat\(\[-z, z\], 1\)"):
        CALLS[name](model, batch[0], torch.zeros(16, dtype=torch.long))


@pytest.mark.parametrize("name", sorted(set(CALLS) - {"ibp_margins", "LiRPA.bounds"}))
def test_errors_of_the_networks_own_and_of_memory_are_left_as_they_are(batch, name):
    class Fails(nn.Linear):
        def forward(self, x):
            raise error

    for error in (ValueError("my own"), torch.OutOfMemoryError("no more")):
        with pytest.raises(type(error), match=f"^{error}$"):
            CALLS[name](Fails(2, 2), *batch)


def test_a_network_that_casts_its_inputs_may_be_given_others(cnn, batch):
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = cnn()

        def forward(self, x):
            return self.inner(x.float())

    x, y = batch
    found = Smoothed(0.1, n=50).certify(Casts(), x.double(), y)
    assert len(found.radii) == 16


def test_labels_that_are_no_integers_and_devices_of_two_kinds(cnn, batch):
    model, (x, y) = cnn(), batch
    for labels in (y.float(), torch.full((16,), torch.nan)):
        with pytest.raises(ValueError, match="labels are torch.float32; legal: integers 0 to 9"):
            IBP(THREAT)(model, x, labels)
    with pytest.raises(ValueError, match="inputs are on cpu and the model on meta; give x.to"):
        refuse_inputs(model.to("meta"), x, RuntimeError("of two devices"))


def test_verify_in_inference_mode(cnn, batch):
    with torch.inference_mode():
        model, (x, y) = cnn(), (each.clone() for each in batch)
        found = verify(model, x, y, {"IBP": IBP(THREAT), "PGD": pgd(THREAT, steps=2)})
    assert len(found.verdicts) == 16
