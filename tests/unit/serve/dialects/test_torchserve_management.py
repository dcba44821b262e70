"""TorchServe's management to the letter: what the real one, 0.12, answered to the same calls."""

import pytest
from tests.serving import open_door

NOT_FOUND = "Requested resource is not found, please refer to API document."
NOT_ALLOWED = "Requested method is not allowed, please refer to API document."
BUSY = "Processing worker updates..."
NO_WORKERS = (
    " registered with 0 initial workers. Use scale workers API to add workers for the model."
)


def refused(status, kind, message):
    return status, {"code": status, "type": f"{kind}Exception", "message": message}


def done(text, status=200):
    return status, {"status": text}


def missing(name):
    return refused(404, "ModelNotFound", f"Model not found: {name}")


def no_version(version, name):
    text = f"Model version: {version} does not exist for model: {name}"
    return refused(404, "ModelVersionNotFound", text)


CALLS = [
    ("GET /models/nope", missing("nope")),
    ("GET /models/nope/", missing("nope")),
    ("GET /models/nope/all", missing("nope")),
    ("GET /models/b/9.9", no_version("9.9", "b")),
    ("GET /models/b/1.0/x", refused(404, "ResourceNotFound", NOT_FOUND)),
    ("GET /nothing", refused(404, "ResourceNotFound", NOT_FOUND)),
    ("POST /nothing", refused(404, "ResourceNotFound", NOT_FOUND)),
    ("GET /", refused(405, "MethodNotAllowed", NOT_ALLOWED)),
    ("DELETE /models", refused(405, "MethodNotAllowed", NOT_ALLOWED)),
    ("POST /models/b", refused(405, "MethodNotAllowed", NOT_ALLOWED)),
    ("OPTIONS /models", refused(405, "MethodNotAllowed", NOT_ALLOWED)),
    ("OPTIONS /models/nope", missing("nope")),
    ("GET /v1/models/b", (200, {"name": "b", "ready": True})),
    ("GET /v1/models/nope", missing("nope")),
    ("POST /models", refused(400, "BadRequest", "Parameter url is required.")),
    ("POST /models?url=", refused(404, "ModelNotFound", "empty url")),
    ("POST /models?url=missing.mar",
     refused(404, "ModelNotFound", "Model not found at: missing.mar")),
    ("POST /models?url=ftp://a/x.mar",
     refused(404, "ModelNotFound", "Model not found at: ftp://a/x.mar")),
    ("POST /models?url=../x.mar",
     refused(404, "ModelNotFound", "Relative path is not allowed in url: ../x.mar")),
    ("POST /models?url=c&runtime=lua",
     refused(400, "BadRequest", "Invalid RuntimeType value: lua")),
    ("POST /models?url=c&runtime=", refused(400, "BadRequest", "Invalid RuntimeType value: ")),
    ("POST /models?url=b&initial_workers=1",
     refused(409, "ConflictStatus", "Model version 1.0 is already registered for model b")),
    ("POST /models?url=c&initial_workers=x&runtime=python3",
     done(f'Model "c" Version: 1.0{NO_WORKERS}')),
    ("POST /models?url=d&initial_workers=-3", done(f'Model "d" Version: 1.0{NO_WORKERS}')),
    ("POST /models?url=e&initial_workers=&batch_size=x",
     done(f'Model "e" Version: 1.0{NO_WORKERS}')),
    ("POST /models?url=f&initial_workers=2&synchronous=TRUE",
     done('Model "f" Version: 1.0 registered with 2 initial workers')),
    ("POST /models?url=g&initial_workers=2&synchronous=yes", done(BUSY, 202)),
    ("PUT /models/b?min_worker=x", done(BUSY, 202)),
    ("PUT /models/b?min_worker=", done(BUSY, 202)),
    ("PUT /models/b?min_worker=-1&max_worker=2", done(BUSY, 202)),
    ("PUT /models/b?max_worker=0",
     refused(400, "BadRequest", "max_worker cannot be less than min_worker.")),
    ("PUT /models/b?min_worker=2&max_worker=1",
     refused(400, "BadRequest", "max_worker cannot be less than min_worker.")),
    ("PUT /models/b?min_worker=1&synchronous=yes", done(BUSY, 202)),
    ("PUT /models/b?min_worker=1&synchronous=1", done(BUSY, 202)),
    ("PUT /models/b?min_worker=1&number_gpu=x&timeout=x", done(BUSY, 202)),
    ("PUT /models/b/?min_worker=2&synchronous=True", done("Workers scaled to 2 for model: b")),
    ("PUT /models/b/1.0?synchronous=true", done("Workers scaled to 1 for model: b, version: 1.0")),
    ("PUT /models/b?model_version=1.0&synchronous=true",
     done("Workers scaled to 1 for model: b, version: 1.0")),
    ("PUT /models/b?model_version=8.0", no_version("8.0", "b")),
    ("PUT /models/b/7.0", no_version("7.0", "b")),
    ("PUT /models/nope/7.0", missing("nope")),
    ("PUT /models/b/1.0/set-default/",
     done('Default version successfully updated for model "b" to "1.0"')),
    ("PUT /models/b/3.0/set-default",
     refused(404, "ModelVersionNotFound", "Model version 3.0 does not exist for model b")),
    ("PUT /models/nope/3.0/set-default", missing("nope")),
    ("PUT /models/b/1.0/other", refused(404, "ResourceNotFound", NOT_FOUND)),
    ("DELETE /models/b/2.0", no_version("2.0", "b")),
    ("DELETE /models/nope?synchronous=true", missing("nope")),
    ("DELETE /models/b/?synchronous=true&timeout=abc", done('Model "b" unregistered')),
]  # fmt: skip


@pytest.fixture
def door():
    with open_door() as opened:
        opened.management.post("/models?url=b&initial_workers=1")
        yield opened


@pytest.mark.parametrize(("call", "expected"), CALLS, ids=[call for call, _ in CALLS])
def test_the_real_one_answers_the_same(door, call, expected):
    method, path = call.split(" ", 1)
    answer = door.management.request(method, path)
    assert (answer.status_code, answer.json()) == expected
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("query", "names", "token"),
    [
        ("", "bpq", None),
        ("?limit=", "bpq", None),
        ("?limit=abc", "bpq", None),
        ("?limit=1.5", "bpq", None),
        ("?limit=-1", "bpq", None),
        ("?limit=101", "bpq", None),
        ("?limit=99999999999", "bpq", None),
        ("?limit=0", "", "0"),
        ("?limit=2", "bp", "2"),
        ("?limit=3", "bpq", "3"),
        ("?limit=2&next_page_token=2", "q", None),
        ("?next_page_token=", "bpq", None),
        ("?next_page_token=x", "bpq", None),
        ("?next_page_token=-4", "bpq", None),
        ("?next_page_token=5", "", None),
    ],
)
def test_pages_are_cut_as_there(door, query, names, token):
    """b, plate and plate-gan are listed, in this order."""
    real = {"b": "b", "plate": "p", "plate-gan": "q"}
    body = door.management.get(f"/models{query}").json()
    assert "".join(real[m["modelName"]] for m in body["models"]) == names
    assert body.get("nextPageToken") == token
    if token:
        assert next(iter(body)) == "nextPageToken"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"url": "x", "initial_workers": 1, "synchronous": True}, 200),
        ({"url": "x", "initial_workers": "1", "synchronous": "false"}, 202),
        ({"url": "x", "initial_workers": "x"}, 400),
        ({"url": "x", "synchronous": 1}, 400),
        ({"initial_workers": 1}, 400),
    ],
)
def test_a_json_body_stands_alone_and_is_typed(door, body, status):
    answer = door.management.post("/models?url=y&model_name=z", json=body)
    assert answer.status_code == status
    assert door.management.get("/models/z").status_code == 404


def test_a_negative_most_is_the_callers_mistake(door):
    """The real one answers 500 IndexOutOfBoundsException to this."""
    answer = door.management.put("/models/b?min_worker=-1")
    assert (answer.status_code, answer.json()["type"]) == (400, "BadRequestException")


@pytest.mark.parametrize("path", ["/nothing", "/some/where", "/predictions", "/ping/x"])
def test_unknown_paths_of_the_inference_listener_are_json(door, path):
    answer = door.http.get(path)
    assert (answer.status_code, answer.json()) == refused(404, "ResourceNotFound", NOT_FOUND)
    assert answer.headers["content-type"] == "application/json"


def test_native_paths_keep_their_own_words(door):
    answer = door.http.get("/v1/nothing")
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "path",
    ["/b/predict", "/b/1.0/predict", "/predictions/b/", "/predictions/b/1.0/more/of/it"],
)
def test_older_and_longer_paths_make_pictures(door, path):
    answer = door.http.post(path, content=b"an apple")
    assert (answer.status_code, answer.content[:4]) == (200, b"\x89PNG")


def test_no_model_name_is_said():
    with open_door() as door:
        answer = door.http.post("/invocations", content=b"an apple")
    expected = refused(400, "BadRequest", "Parameter model_name is required.")
    assert (answer.status_code, answer.json()) == expected


def test_the_description_has_torchserves_names(door):
    described = door.management.get("/api-description").json()
    assert described == door.management.options("/").json()
    assert described["openapi"] == "3.0.1"
    names = {
        (method, operation["operationId"]): [p["name"] for p in operation["parameters"]]
        for path in described["paths"].values()
        for method, operation in path.items()
    }
    assert names["get", "listModels"] == ["limit", "next_page_token"]
    assert names["post", "registerModel"] == [
        "url", "model_name", "handler", "runtime", "batch_size", "max_batch_delay",
        "response_timeout", "startup_timeout", "initial_workers", "synchronous", "s3_sse_kms",
        "output",
    ]  # fmt: skip
    scale = ["min_worker", "max_worker", "number_gpu", "synchronous", "timeout"]
    assert names["put", "setAutoScale"] == ["model_name", *scale]
    assert names["put", "version_setAutoScale"] == ["model_name", "model_version", *scale]
    assert names["delete", "unregisterModel"] == ["model_name", "synchronous", "timeout"]
    assert names["get", "version_describeModel"] == ["model_name", "model_version"]
    assert names["put", "setDefault"] == ["model_name", "model_version"]
    assert "/predictions/{model_name}/{model_version}" in door.http.options("/").json()["paths"]
