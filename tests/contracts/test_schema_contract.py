"""The published schema against the server, both ways, at every door.

A refusal is about a range or a type where one field is wrong by itself: that is an
``InvalidField``, or an ``ImageError`` for a text that is no base64. Bodies made from the
schema never meet one, and bodies that are taken keep to the schema. What the schema
cannot say may still be refused: fields that do not fit together, names that do not
exist, multiples that a model needs, and what an operator allows (413).
"""

import copy
import functools
import json
import re
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.serving import open_door

from mezzotint import errors
from mezzotint.serve import app

DOORS = {
    "native": "/v1/generations",
    "jobs": "/v1/jobs",
    "plans": "/v1/plan",
    "recipes": "/v1/inspect",
    "control pictures": "/v1/preprocess",
    "archives": "/v1/gallery/archive",
    "models": "/v1/operations/models",
    "OpenAI generations": "/v1/images/generations",
    "OpenAI edits": "/v1/images/edits",
    "OpenAI variations": "/v1/images/variations",
    "Hugging Face": "/hf/{model}",
    "A1111 text to image": "/sdapi/v1/txt2img",
    "A1111 image to image": "/sdapi/v1/img2img",
    "A1111 extras": "/sdapi/v1/extra-single-image",
    "A1111 batches": "/sdapi/v1/extra-batch-images",
    "A1111 parameters": "/sdapi/v1/png-info",
    "A1111 interrogate": "/sdapi/v1/interrogate",
    "A1111 options": "/sdapi/v1/options",
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
}
NEVER_TAKEN = {
    "/v1/inspect", "/v1/preprocess", "/v1/gallery/archive", "/sdapi/v1/extra-single-image", "/sdapi/v1/interrogate",  # a real picture
    "/v1/predictions",  # a model's name
    "/prompt",  # a graph of nodes
    "/mcp",  # a header that says what its client accepts
}  # fmt: skip
"""Doors that want what the bodies made here do not have."""
ODD = (
    None, True, False, -1, 0, 1, 2, 0.5, 9, 2000, 1e6, 2**70, 1e300, "", "a", "7", "-1", "x" * 33,
    [], [1], {}, {"a": 1}, "18446744073709551616", "aGVsbG8=", "none", "euler",
)  # fmt: skip

PICTURES = ("aGVsbG8=", "data:image/png;base64,aGVsbG8=", "aGVs\n bG8h", "YQ==", "iVBORw0K" * 12)
LETTERS = st.sampled_from('aé漢🙂 \n\t"(){}:<>|,01-_')


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    folder, few = tmp_path_factory.mktemp("jobs"), {"images": 2, "steps": 6, "pixels": 64 * 64}
    with open_door(folder, limits=few) as opened:
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


def body_schema(document: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the schema of a door's body, with the components it may refer to."""
    content = document["paths"][path]["post"]["requestBody"]["content"]
    return {**content["application/json"]["schema"], "components": document["components"]}


def send(door, path: str, body: Any) -> Any:
    headers = {"Content-Type": "application/json"}
    where = path.replace("{model}", "plate").replace("{model_name}", "plate")
    return door.http.post(where, content=json.dumps(body), headers=headers)


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
            return st.one_of([self._object(schema | option) for option in schema["anyOf"]])
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
            return st.floats(low, high, allow_nan=False) | ends
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

        @st.composite
        def make(draw: st.DrawFn) -> dict[str, Any]:
            names = draw(st.lists(st.sampled_from(sorted(values)), max_size=3))
            return {n: draw(v) for n, v in needed.items()} | {n: draw(values[n]) for n in names}

        return make()


def encodes(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def is_about_one_field(error: BaseException) -> bool:
    """Tell whether an error is about a range or a type."""
    is_no_base64 = isinstance(error, errors.ImageError) and re.search("base64|bytes", str(error))
    return isinstance(error, errors.InvalidField) or bool(is_no_base64)


@st.composite
def mutated(draw, body: Any) -> Any:
    """Return a body with one to three values exchanged, taken out or put in."""
    body = copy.deepcopy(body)
    for _ in range(draw(st.integers(1, 2))):
        places = list(walk(body))
        if not places:
            return draw(st.sampled_from(ODD))
        holder, key = draw(st.sampled_from(places))
        what = draw(st.sampled_from(["exchange", "exchange", "take out", "put in"]))
        if what == "exchange":
            holder[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif what == "take out":
            del holder[key]
        elif isinstance(holder, dict):
            holder["extra"] = 1
        else:
            holder.append(copy.deepcopy(draw(st.sampled_from(ODD))))
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


def check(door, document, refusals, path: str, *, examples: int) -> None:
    root = body_schema(document, path)
    validator = jsonschema_rs.validator_for(root)
    made = Maker(root).of(root)
    relaxed = settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    statuses = set[int]()

    @relaxed
    @given(made)
    def keeps(body):
        validator.validate(body)
        refusals.clear()
        answer = send(door, path, body)
        statuses.add(answer.status_code)
        assert answer.status_code != 500, answer.text
        assert not any(is_about_one_field(e) for e in refusals), (body, answer.text)

    @relaxed
    @given(made.flatmap(mutated))
    def is_kept(body):
        refusals.clear()
        answer = send(door, path, body)
        assert answer.status_code != 500, (body, answer.text)
        if answer.status_code < 300:
            validator.validate(body)

    keeps()
    is_kept()
    assert min(statuses) < 300 or path in NEVER_TAKEN  # or nothing was seen to be taken


def test_every_documented_body_is_made(document):
    posted = {
        path for path, ways in document["paths"].items() if "requestBody" in ways.get("post", {})
    }
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
    assert posted == set(DOORS.values()) | other_paths_of_one_door


@pytest.mark.parametrize("path", DOORS.values(), ids=DOORS)
def test_server_and_schema_agree(door, document, refusals, path):
    check(door, document, refusals, path, examples=25)


@pytest.mark.slow
@pytest.mark.parametrize("path", DOORS.values(), ids=DOORS)
def test_server_and_schema_agree_on_many_bodies(door, document, refusals, path):
    check(door, document, refusals, path, examples=300)
