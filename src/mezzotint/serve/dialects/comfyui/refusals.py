"""ComfyUI refusals: what is wrong with a graph, node by node, in ComfyUI's words."""

import re
from collections.abc import Mapping
from typing import Any

from mezzotint.comfyui import Graph, GraphError, NodeFault
from mezzotint.errors import InvalidField, InvalidRequest, UnknownName
from mezzotint.plain import is_mapping
from mezzotint.serve.dialects.comfyui.lists import input_config

__all__ = ["blamed", "named", "refusal"]

_MESSAGES = {
    "required_input_missing": "Required input is missing",
    "bad_linked_input": "Bad linked input, must be a length-2 list of [node_id, slot_index]",
    "return_type_mismatch": "Return type mismatch between linked nodes",
    "invalid_input_type": "Failed to convert an input value to a {type} value",
    "value_smaller_than_min": "Value {value} smaller than min of {min}",
    "value_bigger_than_max": "Value {value} bigger than max of {max}",
    "value_not_in_list": "Value not in list",
    "custom_validation_failed": "Custom validation failed for node",
}


def blamed(
    graph: Graph, field: str, message: str, value: object, *, kind: str = "value_not_in_list"
) -> GraphError:
    """Return an error that names the node which says a field of ours."""
    node, input_ = graph.places.get(field, (graph.sampler, ""))
    fault = NodeFault(node=node, kind=kind, message=message, input=input_, value=str(value)[:80])
    return GraphError(message, (fault,))


def named(graph: Graph, error: InvalidRequest) -> GraphError:
    """Return an error about a field of ours as one about the node that says it."""
    root = re.match(r"\w*", error.field or "")
    kind = "custom_validation_failed"
    if isinstance(error, UnknownName):
        kind = "value_not_in_list"
    elif isinstance(error, InvalidField) and isinstance(error.value, int | float):
        is_small = error.value <= 0
        kind = "value_smaller_than_min" if is_small else "value_bigger_than_max"
    return blamed(graph, root[0] if root else "", str(error), error.value, kind=kind)


def refusal(error: GraphError, nodes: object) -> dict[str, Any]:
    """Write a refused graph as ComfyUI does: ``error``, and ``node_errors`` by node."""
    found: Mapping[str, Any] = nodes if is_mapping(nodes) else {}
    outputs = [
        str(id_)
        for id_, node in found.items()
        if is_mapping(node) and node.get("class_type") in ("SaveImage", "PreviewImage")
    ]
    by_node: dict[str, dict[str, Any]] = {}
    for fault in error.faults:
        name = str(found.get(fault.node, {}).get("class_type", ""))[:80]
        about: dict[str, Any] = {"errors": [], "dependent_outputs": outputs, "class_type": name}
        by_node.setdefault(fault.node, about)["errors"].append(_fault(fault, name))
    return {"error": _error(error, by_node), "node_errors": by_node}


def _error(error: GraphError, by_node: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Write what is wrong with the graph as a whole."""
    kinds = {fault.kind for fault in error.faults}
    if kinds == {"missing_node_type"}:
        first = error.faults[0]
        name = by_node[first.node]["class_type"]
        extra = {"node_id": first.node, "class_type": name, "node_title": name}
        details = f"Node ID '#{first.node}'"
        text = first.message if len(error.faults) == 1 else str(error)
        return _body("missing_node_type", text, details, extra)
    if by_node:
        kind = "prompt_outputs_failed_validation"
        return _body(kind, "Prompt outputs failed validation", str(error))
    if "no outputs" in str(error):
        return _body("prompt_no_outputs", "Prompt has no outputs", "")
    return _body("invalid_prompt", str(error), str(error))


def _body(
    kind: str, message: str, details: str, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {"type": kind, "message": message, "details": details, "extra_info": extra or {}}


def _fault(fault: NodeFault, class_type: str) -> dict[str, Any]:
    """Write what is wrong with one node; the details are a sentence for people."""
    if not fault.input:
        return _body(fault.kind, fault.message, f"Node ID '#{fault.node}'")
    config = input_config(class_type, fault.input)
    about: Mapping[str, Any] = config[1] if len(config) > 1 and is_mapping(config[1]) else {}
    words = {
        "type": config[0] if config and isinstance(config[0], str) else "STRING",
        "value": fault.value,
        "min": about.get("min", ""),
        "max": about.get("max", ""),
    }
    extra: dict[str, Any] = {"input_name": fault.input}
    if fault.kind != "required_input_missing":
        extra |= {"input_config": config, "received_value": fault.value}
    message = _MESSAGES.get(fault.kind, fault.message).format(**words)
    return _body(fault.kind, message, f"{fault.input} - {fault.message}", extra)
