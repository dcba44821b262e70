"""The open inference protocol: versions of a model beside its default one."""

import base64

import pytest
from tests.serving import open_door


@pytest.fixture(scope="module")
def door():
    with open_door() as opened:
        for version in ("1.0", "2.0"):
            query = {"url": "b", "model_version": version, "initial_workers": "1"}
            assert opened.management.post("/models", params=query).status_code == 200
        yield opened


def infer(door, path):
    inputs = [
        {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["an apple"]},
        {"name": "seed", "datatype": "UINT64", "shape": [1], "data": [7]},
    ]
    return door.http.post(path, json={"id": "x-1", "inputs": inputs})


@pytest.mark.parametrize(
    ("path", "version"),
    [("/v2/models/b/infer", "1.0"), ("/v2/models/b/versions/1.0/infer", "1.0"),
     ("/v2/models/b/versions/2.0/infer", "2.0")],
)  # fmt: skip
def test_each_version_makes_pictures(door, path, version):
    body = infer(door, path).json()
    assert (body["id"], body["model_name"], body["model_version"]) == ("x-1", "b", version)
    assert base64.b64decode(body["outputs"][0]["data"][0])[:4] == b"\x89PNG"
    assert body["outputs"][1]["data"] == [7]


def test_metadata_and_readiness_of_a_version(door):
    one = door.http.get("/v2/models/b/versions/2.0").json()
    assert one == door.http.get("/v2/models/b").json()
    assert (one["name"], one["versions"]) == ("b", ["1.0", "2.0"])
    ready = door.http.get("/v2/models/b/versions/2.0/ready")
    assert (ready.status_code, ready.json()) == (200, {"name": "b", "ready": True})


def test_a_version_without_workers_is_not_ready_alone(door):
    door.management.put("/models/b/2.0?min_worker=0")
    try:
        assert door.http.get("/v2/models/b/versions/2.0/ready").status_code == 503
        assert infer(door, "/v2/models/b/versions/2.0/infer").status_code == 503
        assert door.http.get("/v2/models/b/ready").status_code == 200
    finally:
        door.management.put("/models/b/2.0?min_worker=1")


def test_an_id_that_is_no_text_is_named(door):
    tensor = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["x"]}
    answer = door.http.post("/v2/models/b/infer", json={"id": [1], "inputs": [tensor]})
    assert (answer.status_code, answer.json()["error"]) == (400, "id must be a text, got list")


@pytest.mark.parametrize("end", ["", "/ready", "/infer"])
def test_a_version_that_is_not_there_is_named(door, end):
    path = f"/v2/models/b/versions/9.9{end}"
    answer = infer(door, path) if end == "/infer" else door.http.get(path)
    assert (answer.status_code, answer.json()["type"]) == (404, "ModelVersionNotFoundException")
    assert answer.json()["message"] == "Model version: 9.9 does not exist for model: b"
