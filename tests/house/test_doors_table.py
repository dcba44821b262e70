"""The table of doors in the documentation is true: each entry is held against its door."""

import copy

import pytest
from docs.doors_table import DOORS
from tests.unit.test_comfyui import TEXT_TO_IMAGE

from mezzotint.comfyui import GraphError, read_graph
from mezzotint.errors import InvalidRequest
from mezzotint.request import GenerationRequest
from mezzotint.serve.dialects import a1111, huggingface, native, openai, torchserve_requests
from mezzotint.serve.dialects.hosted import fal, replicate

BASE = {"prompt": "a pear", "seed": 7}


def ask_openai(given):
    return openai.to_request({**BASE, **given})[0], ()


def ask_a1111(given):
    translated = a1111.to_request({**BASE, **given}, "plate")
    return translated.request, translated.warnings


def ask_huggingface(given):
    body = {"inputs": "a pear", "parameters": {"seed": 7, **given}}
    return huggingface.to_request("plate", body), ()


def ask_torchserve(given):
    base = {"data": "a pear", "seed": 7}
    return torchserve_requests.to_request("plate", {**base, **given})[0], ()


def ask_comfyui(given):
    graph = copy.deepcopy(TEXT_TO_IMAGE)
    for path, value in given.items():
        kind, _, name = path.partition(".")
        nodes = [node for node in graph.values() if node["class_type"] == kind]
        if nodes:
            nodes[0]["inputs"][name] = value
        else:
            graph["99"] = {"class_type": kind, "inputs": {name: value}}
    read = read_graph(graph)
    return GenerationRequest.from_dict(read.fields), read.warnings


ASK = {
    "native, jobs": lambda given: (native.to_request({**BASE, **given}), ()),
    "MCP": lambda given: (GenerationRequest.from_dict({**BASE, **given}), ()),
    "OpenAI": ask_openai,
    "A1111": ask_a1111,
    "Hugging Face": ask_huggingface,
    "TorchServe, KServe": ask_torchserve,
    "Replicate": lambda given: replicate.to_request("plate", {**BASE, **given}),
    "fal": lambda given: (fal.to_request("plate", {**BASE, **given})[0], ()),
    "ComfyUI": ask_comfyui,
}


def entries(what):
    return [
        pytest.param(claims.door, {name: value}, id=f"{claims.door}: {name}")
        for claims in DOORS
        for name, value in getattr(claims, what).items()
    ]


def test_every_door_of_the_table_is_tried():
    assert [claims.door for claims in DOORS] == list(dict.fromkeys(c.door for c in DOORS))
    assert {claims.door for claims in DOORS} == ASK.keys()


@pytest.mark.parametrize(("door", "given"), entries("honoured"))
def test_what_is_honoured_changes_the_request(door, given):
    assert ASK[door](given)[0] != ASK[door]({})[0]


@pytest.mark.parametrize(("door", "given"), entries("ignored"))
def test_what_is_ignored_changes_nothing(door, given):
    assert ASK[door](given)[0] == ASK[door]({})[0]


@pytest.mark.parametrize(("door", "given"), entries("warned"))
def test_what_is_ignored_with_a_warning_is_named(door, given):
    (name, value), *_ = given.items()
    warnings = ASK[door](given)[1]
    assert any(name.rpartition(".")[2] in w or str(value) in w for w in warnings)


@pytest.mark.parametrize(("door", "given"), entries("refused"))
def test_what_is_refused_is_named(door, given):
    (name, value), *_ = given.items()
    with pytest.raises((InvalidRequest, GraphError)) as caught:
        ASK[door](given)
    shown = f"{caught.value} {getattr(caught.value, 'faults', '')}"
    assert name.partition(".")[0] in shown or name in shown or str(value) in shown


@pytest.mark.parametrize("claims", DOORS, ids=lambda claims: claims.door)
def test_a_door_takes_the_fields_of_the_request_where_the_table_says_so(claims):
    given = {"tiling": True, "negative_prompt": "fog", "deadline_s": 5.0}
    if claims.takes_ours:
        request = ASK[claims.door](given)[0]
        assert {name: getattr(request, name) for name in given} == given
    elif claims.door == "A1111":  # a name that it does not know is ignored
        assert ASK[claims.door](given)[0].deadline_s is None
