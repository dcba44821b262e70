"""Certificates on networks that depend on their batch in known ways."""

import pytest
import torch
from torch import nn

from mezzotint.engine.execution.certify import (
    Certificates,
    Rows,
    Trial,
    check_bucket,
    random_rows,
    take_in_pairs,
)
from mezzotint.models.base import Conditioning
from mezzotint.models.networks import TorchNetwork


class BatchDependent(nn.Linear):
    """A linear layer whose answer changes a little with more than four rows."""

    def forward(self, input):
        answer = super().forward(input)
        return answer * (1 + 1e-3) if input.shape[0] > 4 else answer


class Net(nn.Module):
    def __init__(self, first=nn.Linear):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = first(8, 8), nn.Conv1d(1, 1, 3, padding=1)
        for parameter in self.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, latents):
        return self.second(self.first(latents)[:, None])[:, 0]


class NeighbourDependent(nn.Module):
    """No layer to blame: rows see their mean."""

    def forward(self, latents):
        return latents - latents.mean(dim=0, keepdim=True) * (latents.shape[0] > 2)


class FakeModel:
    def __init__(self, module):
        self.module = module
        network = TorchNetwork(lambda dtype: module, lambda m, inputs: (m(inputs["latents"]),))
        self.networks = {"denoiser": network}

    def call(self, rows):
        return self.networks["denoiser"](latents=rows.latents)[0]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def rows(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Rows(
        torch.randn((count, 8), generator=generator),
        torch.full((count,), 2.0, dtype=torch.float64),
        torch.full((count,), 500.0),
        Conditioning({"words": torch.randn((count, 3, 4), generator=generator)}),
    )


def tried(certificates, model, count):
    """Try a size to the end and let it be remembered."""
    trial = Trial(rows(count))
    while trial.passed is None:
        trial.advance(model.call)
    return certificates.settle(("k",), "net", trial, model=model, call=model.call)


def test_a_network_that_is_the_same_at_every_size_passes():
    model = FakeModel(NeighbourDependentFree())
    assert all(check_bucket(model.call, rows(count)) for count in (1, 2, 4, 6, 8))


class NeighbourDependentFree(nn.Module):
    def forward(self, latents):
        return torch.tanh(latents) * 3


def test_a_row_that_sees_its_neighbours_is_found():
    model = FakeModel(NeighbourDependent())
    assert check_bucket(model.call, rows(2))
    assert not check_bucket(model.call, rows(4))


def test_a_guilty_layer_takes_pairs_and_the_size_passes(tmp_path):
    model = FakeModel(Net(BatchDependent))
    certificates = Certificates("env", tmp_path)
    assert not check_bucket(model.call, rows(6))
    expected = model.call(rows(6).pick([0, 1]))
    assert tried(certificates, model, 6)
    assert torch.equal(model.call(rows(6))[:2], expected)
    (line,) = certificates.table()
    assert line["buckets"] == {"6": True}
    assert "first" in line["layers_in_pairs"]


def test_what_cannot_be_repaired_is_not_used(tmp_path):
    model = FakeModel(NeighbourDependent())
    certificates = Certificates("env", tmp_path)
    assert not tried(certificates, model, 4)
    assert tried(certificates, model, 1)
    assert certificates.allowed(("k",), "net", (1, 2, 4, 8)) == (1, 2)  # 8 was not tried
    assert not certificates.passed(("k",), "net", 4)
    assert certificates.passed(("k",), "net", 2)


def test_certificates_and_repairs_survive_a_restart_in_the_same_environment(tmp_path):
    first = FakeModel(Net(BatchDependent))
    tried(Certificates("env", tmp_path), first, 6)
    again, fresh = Certificates("env", tmp_path), FakeModel(Net(BatchDependent))
    assert again.is_tried(("k",), "net", 6)
    again.prepare(("k",), "net", fresh)
    assert check_bucket(fresh.call, rows(6))
    assert not Certificates("other", tmp_path).is_tried(("k",), "net", 6)


def test_a_broken_certificate_is_made_again(tmp_path):
    model = FakeModel(NeighbourDependentFree())
    tried(Certificates("env", tmp_path), model, 4)
    (file,) = tmp_path.iterdir()
    file.write_text("{")
    assert not Certificates("env", tmp_path).is_tried(("k",), "net", 4)


def test_a_trial_that_is_left_makes_no_call_twice():
    made = []

    def call(asked):
        made.append(len(asked))
        if len(made) == 3:
            raise KeyboardInterrupt
        return asked.latents

    trial = Trial(rows(4))
    with pytest.raises(KeyboardInterrupt):
        while trial.passed is None:
            trial.advance(call)
    assert trial.next_rows == 2
    while trial.passed is None:
        trial.advance(call)
    assert made == [4, 4, 2, 2, 2]  # whole, turned round, the pair that was left, both pairs
    assert trial.passed
    assert trial.next_rows == 0


def test_random_rows_have_the_shapes_of_real_ones_and_other_values():
    real = rows(2)
    made = random_rows(real, 6)
    assert len(made) == 6
    assert made.conditioning.shape_key == real.conditioning.shape_key
    assert not torch.equal(made.latents[0], made.latents[1])
    assert set(made.timestep.tolist()) == {500.0}
    again = random_rows(real, 6)
    assert torch.equal(made.latents, again.latents)


def test_a_layer_in_pairs_answers_as_in_the_reference_call():
    layer = BatchDependent(4, 4)
    inputs = torch.randn((7, 4), generator=torch.Generator().manual_seed(1))
    pairs = torch.cat([layer(inputs[k : k + 2]) for k in (0, 2, 4)])
    take_in_pairs(layer)
    take_in_pairs(layer)
    assert torch.equal(layer(inputs)[:6], pairs)
