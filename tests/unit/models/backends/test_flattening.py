"""Against OpenVINO's own group norm, whose bits are to be kept."""

import numpy as np
import openvino
import pytest
from openvino import opset13

from mezzotint.models.backends.flattening import flatten_planes

SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}


def residual(channels, groups, shape, *, silu):
    """A norm between two convolutions, the embedding of a time added before the second norm."""
    random = np.random.default_rng(channels)

    def normal(*lengths):
        return opset13.constant(random.standard_normal(lengths, dtype=np.float32))

    def convolve(x):
        kernel = normal(channels, channels, 3, 3)
        return opset13.convolution(x, kernel, [1, 1], [1, 1], [1, 1], [1, 1])

    def norm(x):
        answer = opset13.group_normalization(x, normal(channels), normal(channels), groups, 1e-5)
        return opset13.swish(answer) if silu else answer

    picture = opset13.parameter(openvino.PartialShape([-1, channels, *shape]), np.float32)
    times = opset13.parameter(openvino.PartialShape([-1, channels]), np.float32)
    axes = opset13.constant(np.array([2, 3]))
    answer = convolve(norm(picture))
    answer = convolve(norm(opset13.add(answer, opset13.unsqueeze(times, axes))))
    results = [opset13.result(opset13.add(answer, picture))]
    return openvino.Model(results, [picture, times], "residual")


def answers(model, calls):
    request = openvino.Core().compile_model(model, "CPU", SETTINGS).create_infer_request()
    return [np.array(request.infer(call)[0]) for call in calls]


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("shape", [(-1, -1), (8, 8), (16, 24)])
@pytest.mark.parametrize(("channels", "groups"), [(16, 4), (32, 8), (64, 8), (96, 16)])
def test_planes_keep_every_bit_of_openvinos_own_norm(channels, groups, shape, silu):
    random = np.random.default_rng(0)
    sizes = [(4, 4), (8, 8), (16, 24), (5, 7), (96, 80)] if shape == (-1, -1) else [shape]
    calls = [
        [
            3 * random.standard_normal((rows, channels, *size), dtype=np.float32) + 1,
            random.standard_normal((rows, channels), dtype=np.float32),
        ]
        for size in sizes
        for rows in (1, 3)
    ]
    expected = answers(residual(channels, groups, shape, silu=silu), calls)
    model = residual(channels, groups, shape, silu=silu)
    assert flatten_planes(model) == 3
    for found, wanted in zip(answers(model, calls), expected, strict=True):
        assert np.array_equal(found, wanted)


def test_sums_of_other_shapes_are_left_alone():
    picture = opset13.parameter(openvino.PartialShape([-1, 4, -1, -1]), np.float32)
    line = opset13.parameter(openvino.PartialShape([-1, 4]), np.float32)
    pairs = opset13.add(line, opset13.constant(np.ones((1, 4), np.float32)))
    one_for_all = opset13.add(picture, opset13.constant(np.ones((1, 4, 1, 1), np.float32)))
    model = openvino.Model(
        [opset13.result(pairs), opset13.result(one_for_all)], [picture, line], "sums"
    )
    assert flatten_planes(model) == 0
