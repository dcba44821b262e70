from math import inf, nan

import pytest
import torch

from mezzotint.models.finite import rows_not_finite

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPES = [(5, 1), (5, 7), (5, 3, 4, 6)]


def expected(tensor):
    """Which rows hold a value that torch calls not finite, one row at a time."""
    return [k for k in range(tensor.shape[0]) if not bool(torch.isfinite(tensor[k]).all())]


def noise(shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [nan, -nan, inf, -inf])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_rows_are_those_of_isfinite_wherever_the_value_stands(dtype, bad, shape):
    for row in range(5):
        for place in (0, -1, shape[1] // 2):
            tensor = noise(shape, dtype)
            tensor[row].view(-1)[place] = bad
            assert rows_not_finite(tensor) == expected(tensor) == [row]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_rows_are_told_in_order(dtype):
    tensor = noise((6, 3, 8, 8), dtype)
    tensor[4, 2, 7, 7], tensor[1, 0, 0, 0] = nan, inf
    tensor[2, 1, 3, 3], tensor[2, 1, 3, 4] = inf, -inf  # their sum is NaN
    assert rows_not_finite(tensor) == expected(tensor) == [1, 2, 4]
    assert rows_not_finite(torch.full((2, 3), nan, dtype=dtype)) == [0, 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_extremes_of_a_type_are_finite(dtype):
    info = torch.finfo(dtype)
    row = torch.tensor([info.max, info.min, info.tiny, -info.tiny, 0.0, -0.0], dtype=dtype)
    tensor = torch.stack([row] * 3)
    tensor[1] = info.max  # a sum or a mean of these would be infinite
    assert torch.isfinite(tensor).all()
    assert rows_not_finite(tensor) == []
    if dtype == torch.float32:
        assert rows_not_finite(torch.full((2, 4), 1e-45)) == []  # subnormal


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0,), (0, 3, 4, 4), (3, 0), (2, 3, 0, 4)], ids=str)
def test_what_is_empty_holds_nothing_bad(dtype, shape):
    assert rows_not_finite(torch.empty(shape, dtype=dtype)) == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_are_read_as_they_are_seen(dtype):
    whole = noise((4, 6, 8, 8), dtype)
    whole[1, 0, 0, 0], whole[2, 5, 7, 7] = nan, inf
    views = [
        whole.to(memory_format=torch.channels_last),
        whole.transpose(0, 1),
        whole[::2],
        whole[:, :3],
        whole[:, 1:5, 2:6, 1:],
        whole.flip(0),
        whole[:1].expand(3, -1, -1, -1),
        whole[1:2].expand(3, -1, -1, -1),
    ]
    found = [rows_not_finite(view) for view in views]
    assert found == [expected(view) for view in views]
    assert found == [[1, 2], [0, 5], [1], [1], [], [1, 2], [], [0, 1, 2]]


def test_a_tensor_that_learns_is_only_looked_at():
    tensor = noise((2, 3)).requires_grad_()
    assert rows_not_finite(tensor * 2) == []
    assert rows_not_finite(tensor / 0) == [0, 1]
