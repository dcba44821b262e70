"""Flattening: what is done to each channel of a picture runs over whole planes, not over rows.

Where each channel has a number of its own (the scale and shift of a group norm, the embedding
of a time), OpenVINO's kernels step along the last dimension alone. In a small U-Net that is a
row of 4, 8 or 16 numbers, while a vector of the processor holds 16, so that an activation takes
four times as long as it need. The same sums over (N, C, H * W) have rows long enough: a seventh of
a small U-Net's time, and no bit of an answer changes.

A convolution answers with channels last, a norm wants planes. For few channels OpenVINO has a
plain loop for that way; written out as two transposes it is done in blocks, which takes a tenth
off the decoder of a small model.

Dimensions: N rows of a call, C channels in G groups, H and W rows and columns.
"""

from typing import Any

import numpy as np

from mezzotint.models.backends.quiet import import_openvino

__all__ = ["flatten_planes"]

_LOOPED = range(16, 33)
"""Channels for which OpenVINO goes from channels last to planes in a plain loop, and two
transposes are quicker. It loops up to 64; from there on, in small planes, they gain nothing."""


def flatten_planes(model: Any) -> int:
    """Rewrite group norms and sums of a plane and one number per channel, in place.

    Args:
        model: An OpenVINO model in float32.

    Returns:
        Nodes that were rewritten.
    """
    operations = import_openvino().opset13
    count = 0
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "GroupNormalization" and _is_plane(node.input_value(0)):
            end, answer = _norm(operations, node)
        elif kind == "Add" and _adds_channels(node):
            end, answer = node, _sum(operations, node)
        else:
            continue
        for place in list(end.output(0).get_target_inputs()):
            place.replace_source_output(answer.output(0))
        count += 1
    if count:
        model.validate_nodes_and_infer_types()
    return count


def _norm(operations: Any, node: Any) -> tuple[Any, Any]:
    """Write a group norm, and the SiLU behind it, as OpenVINO computes it, over whole planes.

    Returns:
        The last node that is replaced, and what answers in its place.
    """
    source, scale, shift = (node.input_value(k) for k in range(3))
    attributes = node.get_attributes()
    groups, channels = attributes["num_groups"], _length(source, 1)
    shape = operations.shape_of(source)
    grouped_shape = operations.concat(
        [
            operations.multiply(_pick(operations, shape, 0), _numbers(groups)),
            _numbers(channels // groups),
            _pick(operations, shape, 2, 3),
        ],
        0,
    )
    # The sums of mean and variance keep their order: group by group, over channels of planes.
    planes = _planes(operations, source) if channels in _LOOPED else source
    normal = operations.mvn(
        operations.reshape(planes, grouped_shape, False),
        _numbers(1, 2, 3),
        True,
        attributes["epsilon"],
        "inside_sqrt",
    )
    normal = operations.reshape(operations.reshape(normal, shape, False), _numbers(0, 0, -1), True)
    column = _numbers(channels, 1)
    scaled = operations.multiply(normal, operations.reshape(scale, column, False))
    # The shift stands first: behind it, product and sum would be rounded once in place of twice.
    answer = operations.add(operations.reshape(shift, column, False), scaled)
    end = node
    following = list(node.output(0).get_target_inputs())
    if len(following) == 1 and _is_silu(following[0].get_node()):
        end, answer = following[0].get_node(), operations.swish(answer)
    return end, operations.reshape(answer, shape, False)


def _planes(operations: Any, source: Any) -> Any:
    """Return the numbers of a picture as planes, in one: (N, C, H, W) -> (N, C, 1, H * W)."""
    last = operations.transpose(source, _numbers(0, 2, 3, 1))
    rows = operations.reshape(last, _numbers(0, 1, -1, _length(source, 1)), True)
    return operations.transpose(rows, _numbers(0, 3, 1, 2))


def _sum(operations: Any, node: Any) -> Any:
    """Write the sum of planes and one number per row and channel over whole planes."""
    planes, numbers = node.input_value(0), node.input_value(1)
    total = operations.add(
        operations.reshape(planes, _numbers(0, 0, -1), True),
        operations.reshape(numbers, _numbers(0, 0, 1), True),
    )
    return operations.reshape(total, operations.shape_of(planes), False)


def _adds_channels(node: Any) -> bool:
    """Whether a sum is of (N, C, H, W) and (N, C, 1, 1), of as many rows as a call has."""
    planes, numbers = node.input_value(0), node.input_value(1)
    if not (_is_plane(planes) and _is_plane(numbers)):
        return False
    small, large = numbers.get_partial_shape(), planes.get_partial_shape()
    return (
        small[0].is_dynamic
        and large[0].is_dynamic
        and [_length(numbers, k) for k in (1, 2, 3)] == [_length(planes, 1), 1, 1]
    )


def _is_plane(output: Any) -> bool:
    """Whether an output has the shape (N, C, H, W) with a known C."""
    shape = output.get_partial_shape()
    return shape.rank.is_static and len(shape) == 4 and shape[1].is_static


def _is_silu(node: Any) -> bool:
    return node.get_type_name() == "Swish" and node.get_input_size() == 1


def _length(output: Any, place: int) -> int:
    """Return a dimension of an output; -1 where it is open."""
    dimension = output.get_partial_shape()[place]
    return dimension.get_length() if dimension.is_static else -1


def _pick(operations: Any, shape: Any, *places: int) -> Any:
    """Return some of the numbers of a shape."""
    return operations.gather(shape, _numbers(*places), _numbers(0))


def _numbers(*values: int) -> Any:
    """Return whole numbers as a constant of a graph."""
    return import_openvino().opset13.constant(np.array(values, np.int64))
