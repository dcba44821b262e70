"""The published schema says what the server does."""

import jsonschema_rs
import pytest
from tests.serving import open_door

from mezzotint.serve.config import Limits
from mezzotint.serve.schema import request_schema

WITHIN = [
    {"seed": "18446744073709551615"},
    {"seed": "00007"},
    {"gates": {"budget_s": 5.0, "budget_calls": 10}},
    {"output": {"quality": 1}},
    {"hires": {"strength": 1}},
    {"walk": {"to": "a pear", "frames": 2}},
    {"guidance_scale": {"schedule": "list", "values": [8, 6.5]}},
    {"image": "data:image/png;base64,aGVs\nbG8="},
    {"regions": [{"prompt": "a", "box": [0, 0, 1, 1]}]},
]
OUTSIDE = [
    {"seed": "18446744073709551616"},
    {"seed": "-1"},
    {"gates": {"budget_s": -1}},
    {"gates": {"budget_calls": 0}},
    {"output": {"quality": 0}},
    {"hires": {"strength": 9}},
    {"walk": {"to": "a pear", "frames": 1}},
    {"guidance_scale": {"schedule": "list", "values": [8, 1001]}},
    {"image": "not base64"},
    {"regions": [{"prompt": "a", "box": [0, 0, 1]}]},
    {"model": ""},
]


@pytest.fixture(scope="module")
def door():
    with open_door() as opened:
        yield opened


@pytest.fixture(scope="module")
def native(door):
    document = door.http.get("/openapi.json").json()
    body = document["paths"]["/v1/plan"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/GenerationRequest"}
    return jsonschema_rs.validator_for(document["components"]["schemas"]["GenerationRequest"])


@pytest.mark.parametrize("body", WITHIN)
def test_what_is_taken_is_in_the_schema(door, native, body):
    assert door.http.post("/v1/plan", json=body).status_code == 200
    native.validate(body)


@pytest.mark.parametrize("body", OUTSIDE)
def test_what_is_refused_is_not_in_the_schema(door, native, body):
    assert door.http.post("/v1/plan", json=body).status_code == 422
    assert not native.is_valid(body)


def test_an_operators_limits_are_those_of_the_schema():
    limits = {"images": 4, "steps": 20, "pixels": 256 * 256}
    with open_door(limits=limits) as door:
        schemas = door.http.get("/openapi.json").json()["components"]["schemas"]
        offered = door.http.get("/v1/capabilities").json()["request"]
    assert schemas["GenerationRequest"] == offered
    properties = offered["properties"]
    assert properties["num_images"]["maximum"] == 4
    assert properties["num_inference_steps"]["anyOf"][0]["maximum"] == 20
    assert properties["width"]["anyOf"][0]["maximum"] == 256 * 256 // 8
    assert properties["walk"]["anyOf"][0]["properties"]["frames"]["maximum"] == 4
    hires = properties["hires"]["anyOf"][0]["properties"]
    assert hires["num_inference_steps"]["anyOf"][0]["maximum"] == 20


def test_a_field_says_what_it_means():
    schema = request_schema(Limits().ends)
    assert schema["properties"]["num_images"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 64,
        "description": "Pictures; picture k has the seed ``seed + k``.",
    }
