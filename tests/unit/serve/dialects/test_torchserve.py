"""Every recorded call: our answer beside the one of a real TorchServe 0.12, word for word."""

import json
from pathlib import Path

import pytest
from tests.serving import open_door
from tests.unit.serve.dialects.torchserve.record import ANSWERS, ARCHIVES, ask

from mezzotint.errors import UnknownName
from mezzotint.service.fake import MODELS, FakeService

RECORDED = json.loads(ANSWERS.read_text())


class Store(FakeService):
    """A service without models, and the archives that the recorded server had."""

    def __init__(self) -> None:
        super().__init__()
        self._models.clear()
        self._defaults.clear()

    async def register(self, source, *, name=None, version=None):
        if source not in ARCHIVES:
            raise UnknownName("model", source, [], field="url")
        own, number = ARCHIVES[source]
        made = await super().register(source, name=name or own, version=version or number)
        self._models[made["name"], made["version"]]["family"] = MODELS[0]["family"]
        return made


@pytest.fixture(scope="module")
def ours():
    with open_door(service=Store()) as door:
        listeners = {"M": door.management, "I": door.http, "X": door.metrics}

        def send(listener, method, path, **more):
            return listeners[listener].request(method, path, **more)

        return list(ask(send, lambda: None))


PAGE = Path(__file__).parents[4] / "docs" / "doors" / "torchserve.md"
# Calls that are answered otherwise on purpose: the row of the page that says why -> the calls.
DELIBERATE = {
    "`POST /models?url=https://...`": ["M POST /models?url=http://127.0.0.1:9/x.mar"],
    "a body of JSON that is none, or of the wrong types": [
        'M POST /models {"url": "echo.mar", "model_name": "j3", "initial_workers": "x"}',
        'M POST /models {"url": "echo.mar", "model_name": "j6", "synchronous": 1}',
        'M POST /models {"url": "echo.mar", "model_name": "j8", "initial_workers": 1.5}',
        "M POST /models []",
        "M PUT /models/echo?min_worker=-1",
    ],
    "`batch_size`, `max_batch_delay`, `response_timeout`, `startup_timeout`": ["M GET /models/j4"],
    "`HEAD`": ["M HEAD /models"],
    "other methods and longer paths": ["M GET /models/echo/1.0/set-default", "I GET /ping/x"],
    "`OPTIONS /predictions/{m}`": ["I OPTIONS /predictions/echo"],
    "`GET /` on 8080": ["I GET /"],
    "`/models` on 8080": [
        "I GET /models", "I GET /models/echo", "I POST /models?url=x", "I PUT /models/echo",
        "I DELETE /models/echo",
    ],
    "`/explanations`, `:explain`": [
        "I POST /explanations/echo", 'I POST /v1/models/echo:explain {"instances": ["hello"]}',
    ],
    "`GET /v1/models/{m}` on 8080": [
        "I GET /v1/models/echo", "I GET /v1/models/nope", "I GET /v1/models",
    ],
    "`/v2/...`": [
        "I GET /v2", "I GET /v2/health/live", "I GET /v2/health/ready", "I GET /v2/models/echo",
        "I GET /v2/models/nope", 'I POST /v2/models/nope/infer {"inputs": []}',
    ],
}  # fmt: skip
CALLS = {line for lines in DELIBERATE.values() for line in lines}
# What a description says of this engine, whatever was asked for: see the page.
OWN = {"continuousBatching", "responseTimeout", "startupTimeout", "customizedMetadata", "workers"}
NOT_EXPOSED = {"GPUMemoryUsed", "GPUMemoryUtilization", "GPUUtilization", "WorkerLoadTime"}


@pytest.mark.parametrize("place", range(len(RECORDED)), ids=[line[:80] for line, _ in RECORDED])
def test_the_real_one_answers_the_same(ours, place):
    (line, theirs), (asked, answer) = RECORDED[place], ours[place]
    assert line == asked
    if line in CALLS:
        assert answer != theirs
        return
    assert answer["status"] == theirs["status"]
    if theirs["body"] == "hello":
        assert answer["type"].startswith(("image/", "application/json"))  # a picture, or several
        return
    assert answer["type"] == theirs["type"]
    body, expected = answer["body"], theirs["body"]
    if isinstance(expected, list):
        assert [described(model) for model in body] == [described(model) for model in expected]
    elif isinstance(expected, dict) and "paths" in expected:
        assert (body["openapi"], body["info"]["title"]) == (
            expected["openapi"], expected["info"]["title"]
        )  # fmt: skip
        assert documented(body["paths"], expected["paths"]) == documented(expected["paths"])
    elif line.startswith("X") and "/metrics" in line and expected:
        assert expected.keys() - body.keys() <= NOT_EXPOSED
        for name in expected.keys() & body.keys():
            assert body[name][0] == expected[name][0], name
            assert not expected[name][1] or body[name] == expected[name], name
    else:
        assert body == expected


def described(model):
    """Return what a description must share: what was registered, and the shape of the rest."""
    known = {name: value for name, value in model.items() if name not in OWN}
    for name in ("deviceIds", "engine", "status"):  # TorchServe has them where they are set
        known.pop(name, None)
    workers = [{name: type(value) for name, value in w.items()} for w in model["workers"]]
    shape = {name: type(model[name]) for name in OWN & model.keys()}
    return known, workers, shape


def documented(paths, wanted=None):
    """Return operations and parameters of the paths that TorchServe names."""
    found = {}
    for path, methods in (wanted or paths).items():
        if path == "/metrics":  # it names them on listeners that have none
            continue
        for method in methods:
            operation, names = paths[path][method]
            names = [name for name in names if name != "output"]  # ours
            unique = "" if operation == "predictions" or ":predict" in path else operation
            found[method, path] = ("" if "infer" in path else unique, names)
    return found


def test_the_page_gives_a_reason_for_each_call_that_is_answered_otherwise():
    rows = [row.split("|") for row in PAGE.read_text().splitlines() if row.startswith("| ")]
    reasons = {row[1].strip(): row[-2].strip() for row in rows}
    assert DELIBERATE.keys() <= reasons.keys()
    assert all(reasons[row] for row in DELIBERATE)
    assert len(CALLS) <= 28


def test_what_was_registered_is_described(ours):
    model = dict(ours)["M GET /models/fifth"]["body"][0]
    said = {name: model[name] for name in ("batchSize", "maxBatchDelay", "responseTimeout")}
    assert said == {"batchSize": 4, "maxBatchDelay": 50, "responseTimeout": 7}
    assert model["startupTimeout"] == 9
