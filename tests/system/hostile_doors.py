"""Hostile inputs at the doors of other programs: ComfyUI, Replicate, fal, MCP and KServe v2."""

import base64
import copy
import json
from collections.abc import Iterator
from typing import Any

from tests.system.hostile_cases import (
    JSON,
    NO_JSON,
    NO_NUMBERS,
    NO_PICTURES,
    NO_TEXTS,
    URLS,
    V2,
    Case,
    text_of,
)
from tests.unit.test_comfyui import TEXT_TO_IMAGE

COMFY = "/prompt"
REPLICATE, MODEL = "/v1/predictions", "/v1/models/anyone/plate/predictions"
FAL, RUN = "/fal/anyone/plate", "/fal-run/anyone/plate"
MCP = "/mcp"
DOORS = (COMFY, REPLICATE, MODEL, FAL, RUN, MCP)
ACCEPTS = {**JSON, "accept": "application/json, text/event-stream"}


def table() -> Iterator[Case]:
    """Yield every case of these doors."""
    yield from _bodies()
    yield from _comfyui()
    yield from _hosted()
    yield from _kserve()
    yield from _mcp()
    yield from _paths()


def _case(name: str, path: str, body: Any, status: int, named: str = "") -> Case:
    """Make a case of a JSON value, raw values as they are."""
    data = text_of(body).encode("utf-8", "surrogatepass")
    return Case(f"{path} {name}", path, data, status, named, ACCEPTS if path == MCP else JSON)


def _bodies() -> Iterator[Case]:
    for path in DOORS:
        headers = ACCEPTS if path == MCP else JSON
        for name, body in NO_JSON.items():
            yield Case(f"{path} {name}", path, body, 400, headers=headers)
        for kind in ("text/csv", "application/x-www-form-urlencoded") if path != COMFY else ():
            yield Case(
                f"{path} typed {kind!r}", path, b'{"prompt": "x"}', 415,
                headers={**headers, "content-type": kind},
            )  # fmt: skip
        long = b'{"prompt": "' + b"x" * (3 << 20) + b'"}'
        yield Case(f"{path} too long", path, long, 413, headers=headers)


def _graph(node: str, **inputs: Any) -> dict[str, Any]:
    made = copy.deepcopy(TEXT_TO_IMAGE)
    made[node]["inputs"] |= inputs
    return {"prompt": made}


def _comfyui() -> Iterator[Case]:
    """Nodes whose inputs are wrong, and graphs that are none; ComfyUI says 400 to all."""
    for node, name in (
        ("3", "steps"), ("3", "cfg"), ("3", "seed"), ("5", "width"), ("5", "batch_size"),
    ):  # fmt: skip
        for kind, (value, _) in NO_NUMBERS.items():
            yield _case(f"{name} is {kind}", COMFY, _graph(node, **{name: value}), 400, name)
    for kind, (value, _) in NO_TEXTS.items():
        yield _case(f"text is {kind}", COMFY, _graph("6", text=value), 400, "text")
    for name, node, value in (
        ("sampler_name", "3", "os.system"), ("scheduler", "3", "__class__"),
        ("ckpt_name", "4", "../../etc/passwd"), ("model", "3", ["nowhere", 0]),
        ("positive", "3", ["3", 0]), ("latent_image", "3", ["5", 10**9]), ("samples", "8", []),
        ("images", "9", "8"), ("clip", "6", ["6", 0]), ("ckpt_name", "4", "x" * 10_000),
    ):  # fmt: skip
        yield _case(f"{name} is {str(value)[:20]}", COMFY, _graph(node, **{name: value}), 400, name)
    for name, graph, named in (
        ("no graph", {}, "prompt"), ("a graph that is a list", {"prompt": []}, "prompt"),
        ("a text", {"prompt": "x"}, "prompt"), ("nothing in it", {"prompt": {}}, "prompt"),
        ("a node that is a number", {"prompt": {"1": 5}}, "1"),
        ("a node of no class", {"prompt": {"1": {"inputs": {}}}}, "class_type"),
        ("an unknown class", {"prompt": {"1": {"class_type": "Exec", "inputs": {}}}}, "Exec"),
        ("inputs that are a list",
         {"prompt": {"1": {"class_type": "KSampler", "inputs": []}}}, "inputs"),
        ("ten thousand nodes",
         {"prompt": {str(k): {"class_type": "VAEDecode", "inputs": {"samples": [str(k), 0]}}
                     for k in range(10_000)}}, "prompt"),
    ):  # fmt: skip
        yield _case(name, COMFY, graph, 400, named)
    for name in ("../../etc/passwd", "nothing.png", "a\0b", "/etc/passwd", 5, [1, 2]):
        graph = _graph("3", latent_image=["11", 0])
        graph["prompt"] |= {
            "10": {"class_type": "LoadImage", "inputs": {"image": name}},
            "11": {"class_type": "VAEEncode", "inputs": {"pixels": ["10", 0], "vae": ["4", 2]}},
        }
        yield _case(f"the picture {name!r}", COMFY, graph, 400, "image")


def _hosted() -> Iterator[Case]:
    """Arguments of Replicate and fal, ours among them."""
    for path in (MODEL, RUN):

        def body(path: str = path, **fields: Any) -> dict[str, Any]:
            asked = {"prompt": "x", **fields}
            return asked if path == RUN else {"input": asked}

        for name in ("seed", "num_inference_steps", "height"):
            for kind, (value, status) in NO_NUMBERS.items():
                yield _case(f"{name} is {kind}", path, body(**{name: value}), status, name)
        for kind, (value, status) in NO_TEXTS.items():
            yield _case(f"prompt is {kind}", path, body(prompt=value), status, "prompt")
        for name, fields, named in (
            ("an unknown field", {"__proto__": {}}, "__proto__"),
            ("an unknown scheduler", {"scheduler": "os.system"}, "scheduler"),
            ("an unknown format", {"output_format": "exe"}, "output_format"),
            ("a LoRA of no name", {"loras": [{"name": "nobody\0"}]}, "loras"),
            ("a mask alone", {"mask": "AAAA"}, "mask"),
        ):
            yield _case(name, path, body(**fields), 422, named)
        picture = "image" if path == MODEL else "image_url"
        for url in URLS:
            yield _case(f"picture {url}", path, body(**{picture: url}), 422, picture)
        for name, data in NO_PICTURES.items():
            status = 413 if name in ("a header of four billion pixels", "a bomb of zeros") else 422
            text = base64.b64encode(data).decode()
            yield _case(f"picture {name}", path, body(**{picture: text}), status, picture)
    for size in ("huge", {"width": 0, "height": 64}, {"width": 64}, [64, 64], 5, {"width": 1e30}):
        yield _case(f"size {size}", RUN, {"prompt": "x", "image_size": size}, 422, "image_size")
    for aspect in ("1:0", "x", 5, "1:1:1"):
        fields = {"input": {"prompt": "x", "aspect_ratio": aspect}}
        yield _case(f"ratio {aspect}", MODEL, fields, 422, "aspect_ratio")
    for name, asked, status, named in (
        ("no input", {"version": "plate"}, 422, "input"),
        ("an input that is a list", {"version": "plate", "input": []}, 422, "input"),
        ("no version", {"input": {"prompt": "x"}}, 422, "version"),
        ("a version that is a number", {"version": 5, "input": {"prompt": "x"}}, 422, "version"),
        ("an unknown version", {"version": "x" * 64, "input": {"prompt": "x"}}, 404, "version"),
        ("a webhook to a file", {"version": "plate", "input": {"prompt": "x"},
                                 "webhook": "file:///etc/passwd"}, 422, "webhook"),
        ("a webhook that is a list", {"version": "plate", "input": {"prompt": "x"},
                                      "webhook": []}, 422, "webhook"),
        ("an unknown event", {"version": "plate", "input": {"prompt": "x"},
                              "webhook_events_filter": ["x"]}, 422, "webhook_events_filter"),
    ):  # fmt: skip
        yield _case(name, REPLICATE, asked, status, named)


def _kserve() -> Iterator[Case]:
    """Tensors that are none, and parameters of wrong values."""
    prompt = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["x"]}
    for name in ("width", "num_inference_steps", "guidance_scale"):
        for kind, (value, _) in NO_NUMBERS.items():
            if (kind, name) != ("an object", "guidance_scale"):
                body = {"inputs": [prompt], "parameters": {name: value}}
                yield _case(f"{name} is {kind}", V2, body, 400, name)
    for name, change, named in (
        ("an unknown datatype", {"datatype": "FP99"}, "datatype"),
        ("a datatype that is a number", {"datatype": 5}, "datatype"),
        ("a shape that is too large", {"shape": [3]}, "shape"),
        ("a negative shape", {"shape": [-1]}, "shape"),
        ("a shape of texts", {"shape": ["1"]}, "shape"),
        ("a shape beyond numbers", {"shape": [10**18, 10**18]}, "shape"),
        ("no name", {"name": ""}, "unknown field"),
        ("an unknown name", {"name": "zzz"}, "zzz"),
        ("data that is an object", {"data": {"a": 1}}, "data"),
        ("data of numbers", {"data": [5]}, "prompt"),
        ("nested without end", {"data": [[[[[["x"]]]]]], "shape": [1, 1, 1, 1, 1, 1]}, "prompt"),
        ("more bytes than there are", {"parameters": {"binary_data_size": 99}}, "binary"),
    ):
        yield _case(name, V2, {"inputs": [{**prompt, **change}]}, 400, named)
    for name, body, named in (
        ("no inputs", {}, "inputs"),
        ("inputs that are an object", {"inputs": {}}, "inputs"),
        ("inputs of numbers", {"inputs": [1]}, "inputs"),
        ("one input twice", {"inputs": [prompt, prompt]}, "prompt"),
        ("an unknown output", {"inputs": [prompt], "outputs": [{"name": "zzz"}]}, "zzz"),
        ("outputs that are a text", {"inputs": [prompt], "outputs": "image"}, "outputs"),
        ("an id that is a list", {"inputs": [prompt], "id": []}, "id"),
        ("parameters that are a list", {"inputs": [prompt], "parameters": []}, "parameters"),
    ):
        yield _case(name, V2, body, 400, named)


def _mcp() -> Iterator[Case]:
    """Calls of tools: JSON-RPC says what is wrong inside a 200, as its transport has it."""

    def call(arguments: Any, tool: Any = "generate") -> dict[str, Any]:
        asked = {"name": tool, "arguments": arguments}
        return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": asked}

    for name in ("width", "seed", "num_images"):
        for kind, (value, _) in NO_NUMBERS.items():
            broken = 400 if kind in ("NaN", "Infinity") else 422 if "1e999" in kind else 200
            body = call({"prompt": "x", name: value})
            yield _case(f"{name} is {kind}", MCP, body, broken, name)
    for kind, (value, status) in NO_TEXTS.items():
        body = call({"prompt": value})
        yield _case(f"prompt is {kind}", MCP, body, 400 if status == 400 else 200, "prompt")
    for name, arguments, tool, named in (
        ("an unknown field", {"__proto__": {}}, "generate", "__proto__"),
        ("an unknown scheduler", {"prompt": "x", "scheduler": "os"}, "generate", "scheduler"),
        ("a model that climbs", {"prompt": "x", "model": "../../etc/passwd"}, "generate", "model"),
        ("arguments that are a list", [], "generate", "arguments"),
        ("an unknown tool", {}, "../../x", "../../x"),
        ("a tool of no name", {}, 5, "name"),
        ("a picture that is none", {"picture": "AAAA"}, "verify", "picture"),
        ("a picture from a file", {"picture": "/etc/passwd"}, "verify", "picture"),
    ):
        status = 400 if named in ("arguments", "name") else 200
        yield _case(name, MCP, call(arguments, tool), status, named)
    for name, body, named in (
        ("no method", {"jsonrpc": "2.0", "id": 1}, "method"),
        ("another version", {"jsonrpc": "1.0", "id": 1, "method": "ping"}, "jsonrpc"),
        ("a method that is a number", {"jsonrpc": "2.0", "id": 1, "method": 5}, "method"),
    ):
        yield _case(name, MCP, body, 400, named)


def _paths() -> Iterator[Case]:
    for path, status in {
        "/view?filename=..%2f..%2fetc%2fpasswd": 404, "/view": 404, "/view?filename=%00": 404,
        "/view?filename=x.png&subfolder=..%2f..": 404, "/view?filename=x.png&type=exe": 404,
        "/history/..%2f..%2fx": 404, "/models/..%2f..%2fetc": 404, "/object_info/os.system": 200,
        "/v1/predictions/..%2f..%2fx": 404, "/v1/predictions/%00": 404,
        "/fal/anyone/plate/requests/..%2fx": 405, "/fal/anyone/plate/requests/%00/status": 404,
        "/v2/models/plate/versions/..%2f1": 404, "/v2/models/%00": 404,
    }.items():  # fmt: skip
        yield Case(f"GET {path}", path, b"", status, headers={}, method="GET")
    for path in (REPLICATE, FAL, RUN, COMFY, MCP):
        yield Case(f"PATCH {path}", path, b"", 405, headers={}, method="PATCH")
    for path in DOORS:
        for name, headers in {
            "cross-site": {"sec-fetch-site": "cross-site"},
            "a foreign origin": {"origin": "https://evil.example"},
            "a foreign host": {"host": "evil.example"},
        }.items():
            yield Case(f"{path} of {name}", path, b"{}", 403, headers={**ACCEPTS, **headers})
        if path not in (MCP, COMFY):  # ComfyUI reads JSON whatever its type
            data = json.dumps({"prompt": "x"}).encode()
            yield Case(f"{path} without a type", path, data, 415, headers={})


def messages() -> Iterator[tuple[str, dict[str, Any], str, str]]:
    """Yield what is sent to ``ModelInfer`` over gRPC: a name, fields, the code, what is named."""
    wrong = "INVALID_ARGUMENT"

    def prompt(**change: Any) -> dict[str, Any]:
        given = {"name": "prompt", "datatype": "BYTES", "shape": [1],
                 "contents": {"bytes_contents": [b"x"]}}  # fmt: skip
        return {"inputs": [{**given, **change}]}

    yield "no inputs", {}, wrong, "inputs"
    yield "an unknown model", {**prompt(), "model_name": "../../x"}, "NOT_FOUND", "../../x"
    yield "a model of NUL", {**prompt(), "model_name": "a\0"}, "NOT_FOUND", "a"
    yield "an unknown version", {**prompt(), "model_version": "9"}, "NOT_FOUND", "9"
    beyond = prompt(shape=[1 << 62, 1 << 62])
    yield "a shape beyond numbers", beyond, "RESOURCE_EXHAUSTED", "inputs[0]"
    for name, change, named in (
        ("an unknown datatype", {"datatype": "FP99"}, "datatype"),
        ("a shape that is too large", {"shape": [3]}, "inputs[0]"),
        ("a negative shape", {"shape": [-1]}, "shape"),
        ("an unknown name", {"name": "zzz"}, "zzz"),
        ("no data", {"contents": {}}, "data"),
        ("data of numbers", {"contents": {"int_contents": [5]}}, "prompt"),
        ("no UTF-8", {"contents": {"bytes_contents": [b"\xff\xfe"]}}, "prompt"),
        ("a NUL", {"contents": {"bytes_contents": [b"a\0b"]}}, "prompt"),
    ):
        yield name, prompt(**change), wrong, named
    for name in ("width", "num_inference_steps", "guidance_scale"):
        for kind, value in {
            "below zero": {"int64_param": -1}, "a word": {"string_param": "abc"},
            "a truth": {"bool_param": True}, "far": {"int64_param": 1 << 62},
            "NaN": {"double_param": float("nan")}, "infinite": {"double_param": float("inf")},
        }.items():  # fmt: skip
            fields = {**prompt(), "parameters": {name: value}}
            yield f"{name} is {kind}", fields, wrong, name
    twice = prompt()["inputs"] * 2
    yield "one input twice", {"inputs": twice}, wrong, "prompt"
    yield "an unknown output", {**prompt(), "outputs": [{"name": "zzz"}]}, wrong, "zzz"
    raw = {"name": "prompt", "datatype": "BYTES", "shape": [1]}
    yield (
        "raw bytes that end early",
        {"inputs": [raw], "raw_input_contents": [b"\x09\0\0\0x"]},
        wrong,
        "inputs",
    )
