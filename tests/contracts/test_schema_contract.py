"""The published schema against the server, both ways, at every door.

A refusal is about a range or a type where one field is wrong by itself: that is an
``InvalidField``, or an ``ImageError`` for a text that is no base64. Bodies made from the
schema never meet one, and bodies that are taken keep to the schema. What the schema
cannot say may still be refused: fields that do not fit together, names that do not
exist, multiples that a model needs, and what an operator allows (413).
"""

import asyncio
import copy
import functools
import json
import re
import urllib.parse
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.serving import Door, open_door

from mezzotint import errors
from mezzotint.serve import app
from mezzotint.service.config import JobsConfig
from mezzotint.service.fake import FakeConfig

DOORS = {
    "native": "/v1/generations",
    "jobs": "/v1/jobs",
    "plans": "/v1/plan",
    "recipes": "/v1/inspect",
    "control pictures": "/v1/preprocess",
    "archives": "/v1/gallery/archive",
    "models": "/v1/operations/models",
    "training runs": "/v1/runs",
    "training runs that go on": "/v1/runs/{name}/resume",
    "training runs that are used": "/v1/runs/{name}/use",
    "OpenAI generations": "/v1/images/generations",
    "OpenAI edits": "/v1/images/edits",
    "OpenAI variations": "/v1/images/variations",
    "Hugging Face": "/hf/{model}",
    "Hugging Face, default model": "/",
    "A1111 text to image": "/sdapi/v1/txt2img",
    "A1111 image to image": "/sdapi/v1/img2img",
    "A1111 extras": "/sdapi/v1/extra-single-image",
    "A1111 batches": "/sdapi/v1/extra-batch-images",
    "A1111 parameters": "/sdapi/v1/png-info",
    "A1111 interrogate": "/sdapi/v1/interrogate",
    "A1111 options": "/sdapi/v1/options",
    "LoRA by path": "/v1/adapters/loras",
    "TorchServe": "/predictions/{model_name}",
    "KServe v1": "/v1/models/{model_name}:predict",
    "KServe v2": "/v2/models/{model_name}/infer",
    "Replicate": "/v1/predictions",
    "fal": "/fal/{model}",
    "MCP": "/mcp",
    "ComfyUI prompts": "/prompt",
    "ComfyUI queue": "/queue",
    "ComfyUI interrupt": "/interrupt",
    "ComfyUI history": "/history",
    "ComfyUI memory": "/free",
    "Triton models": "/v2/repository/index",
    "Triton loads": "/v2/repository/models/{model_name}/load",
    "Triton unloads": "/v2/repository/models/{model_name}/unload",
    "marks": "/v1/jobs/{id}/images/{k}/marks",
}
JSON, MULTIPART, URLENCODED = (
    "application/json", "multipart/form-data", "application/x-www-form-urlencoded",
)  # fmt: skip
PUT = (
    "/v1/jobs/{id}/images/{k}/marks", "/v1/datasets/{name}/{file}", "/v1/operations/files/{name}", "/v1/adapters/loras/{name}",
)  # fmt: skip
FORMS = (
    "/v1/generations", "/v1/jobs", "/v1/plan", "/v1/inspect", "/v1/images/edits",
    "/v1/images/variations", "/predictions/{model_name}", "/upload/image", "/upload/mask",
)  # fmt: skip
AS_FORMS = [*((MULTIPART, path) for path in FORMS), (URLENCODED, "/predictions/{model_name}")]
BYTES = {
    "image/*": {"/v1/inspect", "/hf/{model}", "/", "/predictions/{model_name}"},
    "application/octet-stream": {
        "/v1/inspect",
        "/v1/datasets/{name}/{file}",
        "/v1/operations/files/{name}",
        "/v1/adapters/loras/{name}",
    },
    "text/plain": {"/predictions/{model_name}"},
}
NEVER_TAKEN = {
    "/v1/inspect", "/v1/preprocess", "/v1/gallery/archive", "/sdapi/v1/extra-single-image", "/sdapi/v1/interrogate",  # a real picture
    "/v1/predictions",  # a model's name
    "/prompt",  # a graph of nodes
    "/v1/runs", "/v1/runs/{name}/resume", "/v1/runs/{name}/use",  # a server that trains
    "/v1/adapters/loras",  # an operator who allows paths
    "/mcp",  # a header that says what its client accepts
    "/upload/mask",  # a picture that was uploaded before
}  # fmt: skip
"""Doors that want what the bodies made here do not have."""
ODD = (
    None, True, False, -1, 0, 1, 2, 0.5, 9, 2000, 1e6, 2**70, 1e300, "", "a", "7", "-1", "x" * 33,
    [], [1], {}, {"a": 1}, "18446744073709551616", "aGVsbG8=", "none", "euler",
)  # fmt: skip

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGM4AQAAygDJmcpdfgAAAABJRU5ErkJggg=="
)
PICTURES = (
    PIXEL,
    "aGVsbG8=",
    "data:image/png;base64,aGVsbG8=",
    "aGVs\n bG8h",
    "YQ==",
    "iVBORw0K" * 12,
)
LETTERS = st.sampled_from('aé漢🙂 \n\t"(){}:<>|,01-_')


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    """Doors with a finished job; later jobs wait behind one that stands still.

    What is asked of them here is whether they are taken, not that they are drawn.
    """
    folder, few = tmp_path_factory.mktemp("jobs"), {"images": 2, "steps": 6, "pixels": 64 * 64}
    queue = JobsConfig(folder=str(folder), max_running=1, max_waiting=10**6, client_share=1.0)
    fake = FakeConfig(stalls={"stand still": str(folder / "go on")})
    with open_door(folder, fake=fake, jobs=queue, home=folder / "home", limits=few) as opened:
        opened.job = opened.http.post("/v1/jobs", json={"prompt": "a pear"}).json()["id"]
        opened.do(opened.front.jobs.wait, opened.job)
        opened.http.post("/v1/jobs", json={"prompt": "stand still"})
        yield opened


@pytest.fixture(scope="module")
def document(door):
    return door.http.get("/openapi.json").json()


@pytest.fixture
def refusals(monkeypatch):
    """The errors that the server answered with, in order."""
    seen: list[BaseException] = []

    def describe(error):
        seen.append(error)
        return DESCRIBE(error)

    monkeypatch.setattr(app, "describe", describe)
    return seen


DESCRIBE = app.describe


def body_schema(document: dict[str, Any], path: str, media: str) -> dict[str, Any]:
    """Return the schema of a door's body, with the components it may refer to."""
    content = document["paths"][path]["put" if path in PUT else "post"]["requestBody"]["content"]
    schema = {**content[media]["schema"], "components": document["components"]}
    if "$ref" in schema:  # one step, so that the fields of a form are in sight
        schema |= Maker(document).resolve(schema.pop("$ref"))
    return schema


def send(door: Door, path: str, content: bytes, media: str) -> tuple[int, str]:
    """Send a body to a door; return the status and the text of its answer."""
    names = {"model": "plate", "model_name": "plate", "id": door.job, "k": "0"}
    names |= {"name": "apples", "file": "0001.png"}
    if path.startswith("/v2/repository"):
        names["model_name"] = "plate-gan"  # the other is in use, by the job that stands still
    method = "PUT" if path in PUT else "POST"
    return door.do(exchange, door.http.app, method, path.format(**names), content, media)


async def exchange(app: Any, method: str, path: str, content: bytes, media: str) -> tuple[int, str]:
    """Ask an application in its own event loop: a client's eight changes of thread are one."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": path, "raw_path": path.encode(), "root_path": "",
        "query_string": b"", "client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 8080),
        "headers": [
            (b"host", b"127.0.0.1:8080"), (b"content-type", media.encode()),
            (b"content-length", str(len(content)).encode()), (b"accept", b"*/*"),
        ],
    }  # fmt: skip
    told, answered = [{"type": "http.request", "body": content}], asyncio.Event()
    status, parts = 0, list[bytes]()

    async def receive() -> dict[str, Any]:
        if told:
            return told.pop()
        await answered.wait()
        return {"type": "http.disconnect"}

    async def take(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                answered.set()

    await app(scope, receive, take)
    return status, b"".join(parts).decode(errors="replace")


def as_json(root: dict[str, Any], body: Any) -> tuple[bytes, str]:
    return json.dumps(body).encode(), JSON


def parts_of(root: dict[str, Any], body: dict[str, Any]) -> list[tuple[str, bool, str]]:
    """Return the parts of a form as OpenAPI reads its schema: name, whether a file, text."""
    parts: list[tuple[str, bool, str]] = []
    for name, value in body.items():
        field = root["properties"].get(name, {})
        if holds_pictures(field) and isinstance(value, list):
            is_file = "contentMediaType" in field["items"]
            parts += [(name, is_file and isinstance(v, str), as_part(v)) for v in value]
        else:
            is_file = "contentMediaType" in field and isinstance(value, str)
            parts.append((name, is_file, as_part(value)))
    return parts


def holds_pictures(field: dict[str, Any]) -> bool:
    return not field.get("items", {}).keys().isdisjoint({"contentMediaType", "contentEncoding"})


def as_part(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def as_multipart(root: dict[str, Any], body: dict[str, Any]) -> tuple[bytes, str]:
    lines: list[str] = []
    for name, is_file, text in parts_of(root, body):
        file = '; filename="a.png"' if is_file else ""
        lines += ["--EDGE", f'Content-Disposition: form-data; name="{name}"{file}', "", text]
    return "\r\n".join([*lines, "--EDGE--", ""]).encode(), f"{MULTIPART}; boundary=EDGE"


def as_urlencoded(root: dict[str, Any], body: dict[str, Any]) -> tuple[bytes, str]:
    parts = [(name, text) for name, _, text in parts_of(root, body)]
    return urllib.parse.urlencode(parts).encode(), URLENCODED


def meant(root: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """Return what a body says that went as a form: its parts are texts, typed by the schema."""
    said: dict[str, Any] = {}
    for name, is_file, text in parts_of(root, body):
        field = root["properties"].get(name, {})
        options = field.get("anyOf", [field]) if "properties" not in field else [field]
        is_text = any(
            o.get("type") == "string" or isinstance(o.get("enum", [0])[0], str) for o in options
        )
        value = text if is_file or is_text else from_json(text)
        if holds_pictures(field):
            said[name] = [*said.get(name, []), *(value if isinstance(value, list) else [value])]
        else:
            said[name] = value
    return said


def from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


class Maker:
    """Makes values of a schema: the keywords that our documents use."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root
        self.known: dict[int, st.SearchStrategy[Any]] = {}

    def of(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        """Return the strategy for a schema, the same one each time."""
        if id(schema) not in self.known:
            self.known[id(schema)] = st.deferred(lambda: made)
            made = self.known[id(schema)] = self._make(schema)
        return self.known[id(schema)]

    def _make(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        if "$ref" in schema:
            return self.of(self.resolve(schema["$ref"]))
        if "allOf" in schema:
            return self._conditional(schema)
        if "anyOf" in schema and "properties" in schema:  # of some fields one is needed
            needed = schema.get("required", [])
            options = [{"required": [*needed, *o["required"]]} for o in schema["anyOf"]]
            return st.one_of([self._object(schema | option) for option in options])
        if "anyOf" in schema:
            return st.one_of([self.of(option) for option in schema["anyOf"]])
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        if "const" in schema:
            return st.just(schema["const"])
        if "properties" in schema:
            return self._object(schema)
        kind = schema.get("type")
        kinds = kind if isinstance(kind, list) else [kind]
        return st.one_of([self._plain(one, schema) for one in kinds])

    def resolve(self, reference: str) -> dict[str, Any]:
        return functools.reduce(lambda at, name: at[name], reference.split("/")[1:], self.root)

    def _conditional(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        plain = {k: v for k, v in schema.items() if k != "allOf"}
        validator = jsonschema_rs.validator_for({**schema, "components": self.root["components"]})
        return self._make(plain).filter(validator.is_valid)

    def _plain(self, kind: str | None, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        low, high = schema.get("minimum"), schema.get("maximum")
        ends = st.sampled_from([low, high]) if None not in (low, high) else st.nothing()
        if kind == "integer":
            return st.integers(low, high) | ends
        if kind == "number":
            return st.floats(low, high, allow_nan=False, allow_infinity=False) | ends
        if kind == "string":
            return self._text(schema)
        if kind == "array":
            return self._array(schema)
        if kind == "null":
            return st.none()
        if kind == "boolean":
            return st.booleans()
        return st.just({}) if kind == "object" else st.sampled_from([None, 0, "a", [], {}])

    def _text(self, schema: dict[str, Any]) -> st.SearchStrategy[str]:
        least, most = schema.get("minLength", 0), schema.get("maxLength", 10**6)
        if "contentEncoding" in schema:
            return st.sampled_from(PICTURES)
        if "pattern" in schema:
            texts = st.from_regex(schema["pattern"].removesuffix("$") + r"\Z")
            return texts.filter(lambda text: least <= len(text) <= most and encodes(text))
        longest = st.just("x" * most) if most < 40_000 else st.nothing()
        return st.text(LETTERS, min_size=least, max_size=min(most, 12)) | longest

    def _array(self, schema: dict[str, Any]) -> st.SearchStrategy[list[Any]]:
        least = schema.get("minItems", 0)
        most = min(schema.get("maxItems", least + 2), least + 2)
        return st.lists(self.of(schema.get("items", {})), min_size=least, max_size=most)

    def _object(self, schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
        """Make objects with what is needed and at most three fields more."""
        properties, extra = schema["properties"], schema.get("additionalProperties")
        needed = {name: self.of(properties[name]) for name in schema.get("required", [])}
        others = sorted(properties.keys() - needed.keys())
        values = {name: self.of(properties[name]) for name in others}
        if isinstance(extra, dict):
            values["quality"] = self.of(extra)
        if not values:
            return st.fixed_dictionaries(needed)

        chosen = st.lists(st.sampled_from(sorted(values)), max_size=3)

        @st.composite
        def make(draw: st.DrawFn) -> dict[str, Any]:
            names = draw(chosen)
            return {n: draw(v) for n, v in needed.items()} | {n: draw(values[n]) for n in names}

        return make()


def encodes(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def is_about_one_field(error: BaseException) -> bool:
    """Tell whether an error is about a range or a type."""
    is_no_base64 = isinstance(error, errors.ImageError) and re.search("base64|bytes", str(error))
    return isinstance(error, errors.InvalidField) or bool(is_no_base64)


PLACES = st.integers(0, 10**6)
CHANGES = st.lists(
    st.tuples(
        PLACES,
        st.sampled_from(["exchange", "exchange", "take out", "put in"]),
        st.sampled_from(ODD),
    ),
    min_size=1,
    max_size=2,
)
"""One to two changes to a body: where (counted round its places), what, and the odd value."""


def mutated(body: Any, changes: list[tuple[int, str, Any]]) -> Any:
    """Return a body with values exchanged, taken out or put in."""
    body = copy.deepcopy(body)
    for place, what, odd in changes:
        places = list(walk(body))
        if not places:
            return odd
        holder, key = places[place % len(places)]
        if what == "exchange":
            holder[key] = copy.deepcopy(odd)
        elif what == "take out":
            del holder[key]
        elif isinstance(holder, dict):
            holder["extra"] = 1
        else:
            holder.append(copy.deepcopy(odd))
    return body


def walk(value: Any):
    """Yield every place of a body as its holder and its key."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in list(items):
        yield value, key
        yield from walk(inner)


WAYS = {JSON: as_json, MULTIPART: as_multipart, URLENCODED: as_urlencoded}


def check(door, document, refusals, path: str, media: str = JSON, *, examples: int) -> None:
    root, way = body_schema(document, path, media), WAYS[media]
    validator = jsonschema_rs.validator_for(root)
    made = Maker(root).of(root)
    relaxed = settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    statuses = set[int]()

    def sent(body: Any) -> tuple[int, str]:
        refusals.clear()
        status, text = send(door, path, *way(root, body))
        assert status != 500, (body, text)
        return status, text

    @relaxed
    @given(made, CHANGES)
    def agree(body, changes):
        validator.validate(body)
        status, text = sent(body)
        statuses.add(status)
        assert not any(is_about_one_field(e) for e in refusals), (body, text)

        odd = mutated(body, changes)
        if media != JSON and not isinstance(odd, dict):
            return  # no form says that
        status, _ = sent(odd)
        if status < 300:
            validator.validate(odd if media == JSON else meant(root, odd))

    agree()
    assert min(statuses) < 300 or path in NEVER_TAKEN  # or nothing was seen to be taken


@pytest.mark.parametrize(
    ("path", "body", "is_valid"),
    [
        (DOORS["A1111 batches"], {"imageList": [], "upscaling_resize_h": 2000}, True),
        (DOORS["A1111 batches"], {"imageList": [], "upscaling_resize_h": 20_000}, False),
        (DOORS["LoRA by path"], {"name": "ink", "source": " \t"}, False),
        (DOORS["LoRA by path"], {"name": "ink", "source": " a"}, True),
    ],
)
def test_what_many_bodies_found_stays_mended(door, document, refusals, path, body, is_valid):
    validator = jsonschema_rs.validator_for(body_schema(document, path, JSON))
    assert validator.is_valid(body) is is_valid
    refusals.clear()
    send(door, path, *as_json({}, body))
    assert any(is_about_one_field(e) for e in refusals) is not is_valid


@pytest.mark.parametrize(("media", "path"), AS_FORMS)
def test_no_form_says_that_pictures_may_be_null(document, media, path):
    fields = body_schema(document, path, media)["properties"].values()
    assert all(f["type"] == "array" and "anyOf" not in f for f in fields if holds_pictures(f))


def test_every_documented_body_is_made(document):
    documented: dict[str, set[str]] = {}
    for path, ways in document["paths"].items():
        for way in ways.values():
            for media in way.get("requestBody", {}).get("content", {}):
                documented.setdefault(media, set()).add(path)
    other_paths_of_one_door = {
        "/predictions/{model_name}/{model_version}",
        "/predictions/{model_name}/{model_version}/{rest}",
        "/{model_name}/predict",
        "/{model_name}/{model_version}/predict",
        "/models/{model_name}/invoke",
        "/invocations",
        "/v2/models/{model_name}/versions/{model_version}/infer",
        "/v1/models/{owner}/{name}/predictions",
        "/fal-run/{model}",
    }
    assert documented.pop(JSON) == set(DOORS.values()) | other_paths_of_one_door
    assert documented.pop(MULTIPART) - other_paths_of_one_door == set(FORMS)
    assert documented.pop(URLENCODED) - other_paths_of_one_door == {DOORS["TorchServe"]}
    assert {m: p - other_paths_of_one_door for m, p in documented.items()} == BYTES


@pytest.mark.parametrize("path", DOORS.values(), ids=DOORS)
def test_server_and_schema_agree(door, document, refusals, path):
    check(door, document, refusals, path, examples=25)


@pytest.mark.parametrize(("media", "path"), AS_FORMS)
def test_server_and_schema_agree_on_forms(door, document, refusals, media, path):
    check(door, document, refusals, path, media, examples=15)


@pytest.mark.parametrize(
    ("media", "path"), [(m, p) for m, paths in BYTES.items() for p in sorted(paths)]
)
@pytest.mark.parametrize("data", [b"a", b"\x89PNG\r\n", "é".encode()], ids=["a", "head", "e"])
def test_no_bytes_are_of_the_wrong_type(door, refusals, media, path, data):
    refusals.clear()
    status, text = send(door, path, data, media.replace("*", "png"))
    assert status != 500, text
    assert not any(is_about_one_field(e) for e in refusals), text


@pytest.mark.slow
@pytest.mark.parametrize(("media", "path"), AS_FORMS)
def test_server_and_schema_agree_on_many_forms(door, document, refusals, media, path):
    check(door, document, refusals, path, media, examples=300)


@pytest.mark.slow
@pytest.mark.parametrize("path", DOORS.values(), ids=DOORS)
def test_server_and_schema_agree_on_many_bodies(door, document, refusals, path):
    check(door, document, refusals, path, examples=300)
