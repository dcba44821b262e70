"""Int8 rows: what is written comes back within half a step of its row's scale."""

import pytest
import torch

from mezzotint.models.int8_rows import expand_rows, expanded_shapes, round_rows


def test_rows_come_back_within_half_a_step():
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    weight[2] *= 100
    weight[4] = 0
    state = round_rows("a.weight", weight)
    assert {k: (v.dtype, tuple(v.shape)) for k, v in state.items()} == {
        "a.weight": (torch.int8, (6, 4, 3, 3)),
        "a.weight_scale": (torch.float32, (6, 1, 1, 1)),
    }
    back = expand_rows({**state, "a.bias": weight[:, 0, 0, 0]})
    assert set(back) == {"a.weight", "a.bias"}
    largest = weight.abs().amax(dim=(1, 2, 3))
    errors = (back["a.weight"] - weight).abs().amax(dim=(1, 2, 3))
    assert (errors <= largest / 254 * (1 + 1e-5)).all()
    assert torch.equal(back["a.weight"][4], weight[4])
    assert back["a.weight"].abs().amax(dim=(1, 2, 3)) == pytest.approx(largest)


def test_by_hand():
    state = {"w": torch.tensor([[-127, 64], [1, 0]], dtype=torch.int8),
             "w_scale": torch.tensor([[0.5], [2.0]]), "b_scale": torch.ones(2, 1)}  # fmt: skip
    back = expand_rows(state)
    assert back["w"].tolist() == [[-63.5, 32.0], [2.0, 0.0]]
    assert torch.equal(back["b_scale"], torch.ones(2, 1))  # belongs to nothing


@pytest.mark.parametrize(
    ("tensors", "shapes"),
    [
        ({"w": ("I8", (4, 3)), "w_scale": ("F16", (4, 1))}, {"w": (4, 3)}),
        ({"w": ("F16", (4, 3)), "w_scale": ("F16", (4, 1))}, {"w": (4, 3), "w_scale": (4, 1)}),
        ({"w": ("I8", (4, 3)), "w_scale": ("F16", (3, 1))}, {"w": (4, 3), "w_scale": (3, 1)}),
        ({"w_scale": ("F16", (4, 1))}, {"w_scale": (4, 1)}),
        ({"w": ("I8", (4,)), "w_scale": ("F16", (4,))}, {"w": (4,), "w_scale": (4,)}),
    ],
)
def test_a_header_tells_the_shapes(tensors, shapes):
    assert expanded_shapes(tensors) == shapes


@pytest.mark.parametrize("weight", [torch.ones(3), torch.tensor([[float("nan"), 1.0]])])
def test_what_has_no_rows_or_is_not_finite_is_refused(weight):
    with pytest.raises(ValueError, match="must be finite and have rows"):
        round_rows("w", weight)
