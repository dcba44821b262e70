import gc

import pytest
import torch
from torch import nn

from mezzotint.engine.execution.certify import take_in_pairs
from mezzotint.errors import InvalidRequest
from mezzotint.models.networks import (
    Placement,
    RowLinear,
    TorchNetwork,
    copy_layers,
    linear_by_row,
    use_row_linears,
)


def test_rows_of_a_pooled_linear_do_not_depend_on_their_number():
    layer = use_row_linears(nn.Linear(320, 1280))
    assert isinstance(layer, RowLinear)
    rows = torch.randn(8, 320, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = layer(rows)
        alone = torch.cat([layer(row[None]) for row in rows])
        assert torch.equal(together, alone)
        torch.testing.assert_close(together, nn.functional.linear(rows, layer.weight, layer.bias))


@pytest.mark.parametrize("biased", [True, False])
def test_one_launch_for_all_rows_gives_what_the_layer_gives(biased):
    layer = nn.Linear(40, 24, bias=biased)
    rows = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(linear_by_row(rows, layer.weight, layer.bias), layer(rows))


def test_layers_of_other_classes_and_weights_stay_as_they_are():
    class Special(nn.Linear):
        pass

    module = nn.Sequential(nn.Linear(2, 2), Special(2, 2), nn.Conv2d(1, 1, 1))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    use_row_linears(module)
    assert [type(layer) for layer in module] == [RowLinear, Special, nn.Conv2d]
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


def test_token_rows_are_taken_one_by_one_where_the_certificate_failed():
    layer = use_row_linears(nn.Linear(8, 8))
    layer.every_row = True
    rows = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(layer(rows)[1:2], layer(rows[1:2]))


def test_network_is_built_once_on_first_call_in_eval_without_gradients():
    built = []

    def build(dtype):
        built.append(dtype)
        return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).to(dtype)

    network = TorchNetwork(build, lambda module, x: (module(x["sample"]),), dtype=torch.bfloat16)
    assert not network.is_built
    sample = torch.ones(2, 4)
    (first,), (second,) = network(sample=sample), network(sample=sample)
    assert built == [torch.bfloat16]
    assert first.dtype == torch.float32
    assert torch.equal(first, second)
    assert not network.module.training
    assert not any(p.requires_grad for p in network.module.parameters())


def test_a_network_that_was_let_go_has_the_module_that_somebody_holds_or_a_new_one():
    network = TorchNetwork(
        lambda dtype: nn.Linear(4, 4).to(dtype), lambda module, x: (module(x["sample"]),)
    )
    held = network.module
    network.let_go()
    assert not network.is_built
    network.change("zero", lambda module: nn.init.zeros_(module.weight))
    assert not held.weight.any()
    assert network.module is held
    network.let_go()
    del held
    gc.collect()
    made = []
    network.build_from(lambda dtype: made.append(1) or nn.Linear(4, 4).to(dtype))
    assert not network.module.weight.any()  # changed, as the one before
    assert made == [1]


def test_timesteps_stay_float32_and_ids_whole_in_half_precision():
    seen = {}

    def call(module, inputs):
        seen.update({name: tensor.dtype for name, tensor in inputs.items()})
        return (inputs["sample"],)

    network = TorchNetwork(lambda dtype: nn.Identity(), call, dtype=torch.bfloat16)
    network(sample=torch.ones(1), timestep=torch.tensor([999.5]), input_ids=torch.tensor([3]))
    assert seen == {
        "sample": torch.bfloat16,
        "timestep": torch.float32,
        "input_ids": torch.int64,
    }


@pytest.mark.parametrize(
    ("device", "asked", "stored", "wanted"),
    [
        ("cpu", None, "F16", torch.float32),
        ("cpu", "float16", "F16", torch.float32),
        ("cpu", "bfloat16", "F32", torch.bfloat16),
        ("cuda", None, "F16", torch.float16),
        ("cuda", None, "BF16", torch.bfloat16),
        ("cuda", None, "F32", torch.float32),
        ("cuda", "float16", "F32", torch.float16),
    ],
)
def test_type_policy(device, asked, stored, wanted):
    assert Placement.choose(device, asked, stored=stored).dtype == wanted


def test_unknown_type_is_refused():
    with pytest.raises(InvalidRequest, match="dtype must be float32, float16 or bfloat16"):
        Placement.choose("cpu", "int3")


@pytest.mark.parametrize("share_weights", [True, False])
def test_a_copy_of_layers_made_during_a_call_takes_nothing_of_that_call_along(share_weights):
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = module(rows)
        module[0].register_forward_hook(lambda _module, _inputs, output: output + 1)
        module[1].register_forward_pre_hook(lambda _module, inputs: (inputs[0] * 2,))
        take_in_pairs(module[1])
        view = copy_layers(module, share_weights=share_weights)
        assert torch.equal(view(rows), plain)
        module[1].weight.zero_()
        assert torch.equal(view[1].weight, module[1].weight) == share_weights
        assert not torch.equal(module(rows), plain)
