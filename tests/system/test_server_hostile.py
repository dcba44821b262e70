"""Hostile input at every door: a 4xx that says why, and a server that stays healthy."""

import base64
import json
import socket
import time
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.serving import RunningServer, running_server

BIG = 10**30
DEEP = "[" * 100_000 + "]" * 100_000
PNG = b"\x89PNG\r\n\x1a\n"
TEXT = {"content-type": "text/plain"}
JSON = {"content-type": "application/json"}
GEN = "/v1/generations"
OPENAI = "/v1/images/generations"
EDIT = "/v1/images/edits"
A1111 = "/sdapi/v1/txt2img"
IMG2IMG = "/sdapi/v1/img2img"
HF = "/hf/plate"
TS = "/predictions/plate"
V1 = "/v1/models/plate:predict"
V2 = "/v2/models/plate/infer"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    limits = {"body_bytes": 1 << 20, "body_s": 1.0, "images": 8, "steps": 100}
    folder = tmp_path_factory.mktemp("hostile")
    with running_server(folder, serve={"limits": limits}) as running:
        yield running


# name, path, body (JSON value, or bytes with headers), allowed statuses, what the answer names
BODIES: list[tuple[str, str, Any, tuple[int, ...], str]] = [
    # numbers
    ("seed beyond 64 bits", GEN, {"seed": 2**64}, (422, 400), "seed"),
    ("seed as a huge text", GEN, {"seed": "9" * 400}, (422,), "seed"),
    ("seed negative", GEN, {"seed": -1}, (422,), "seed"),
    ("seed as a float", GEN, {"seed": 1.5}, (422,), "seed"),
    ("seed as a list", GEN, {"seed": [1]}, (422,), "seed"),
    ("width a googol", GEN, {"width": 1e100}, (422,), "width"),
    ("width zero", GEN, {"width": 0}, (422,), "width"),
    ("width negative", GEN, {"width": -64}, (422,), "width"),
    ("width true", GEN, {"width": True}, (422,), "width"),
    ("area beyond the limit", GEN, {"width": 16384, "height": 16384}, (413,), "width"),
    ("area beyond the limit by upscale", GEN,
     {"width": 1024, "height": 1024, "upscale": {"factor": 8}}, (413,), "width"),
    ("steps a million", GEN, {"num_inference_steps": 10**6}, (422,), "num_inference_steps"),
    ("steps beyond the server's limit", GEN, {"num_inference_steps": 101}, (413,),
     "num_inference_steps"),
    ("images a million", GEN, {"num_images": 10**6}, (422,), "num_images"),
    ("frames a million", GEN, {"walk": {"to": "b", "frames": 10**6}}, (422,), "walk.frames"),
    ("frames beyond the limit", GEN, {"walk": {"to": "b", "frames": 9}}, (413,), "walk.frames"),
    ("guidance huge", GEN, {"guidance_scale": 1e300}, (422,), "guidance_scale"),
    ("guidance negative", GEN, {"guidance_scale": -1}, (422,), "guidance_scale"),
    ("strength above one", GEN, {"strength": 1.01}, (422,), "strength"),
    ("priority huge", GEN, {"priority": 10**9}, (422,), "priority"),
    ("deadline negative", GEN, {"deadline_s": -1}, (422,), "deadline_s"),
    ("upscale by a million", GEN, {"upscale": {"factor": 1e6}}, (422,), "upscale.factor"),
    ("upscale to nothing", GEN, {"upscale": {"factor": 0}}, (422,), "upscale.factor"),
    ("gate attempts a million", GEN, {"gates": {"max_attempts": 10**6}}, (422,), "max_attempts"),
    ("truncation negative", GEN, {"latent": {"truncation": -1}}, (422,), "latent.truncation"),
    ("class beyond any", GEN, {"latent": {"class_label": BIG}}, (422, 400), "class_label"),
    # types
    ("prompt a number", GEN, {"prompt": 5}, (422,), "prompt"),
    ("prompt an object", GEN, {"prompt": {"a": 1}}, (422,), "prompt"),
    ("prompt a megabyte below the limit", GEN, {"prompt": "x" * 900_000}, (422,), "prompt"),
    ("prompt null", GEN, {"prompt": None}, (422,), "prompt"),
    ("model empty", GEN, {"model": ""}, (422,), "model"),
    ("model an object", GEN, {"model": {}}, (422,), "model"),
    ("scheduler unknown", GEN, {"scheduler": "__class__"}, (422,), "scheduler"),
    ("scheduler with a path", GEN, {"scheduler": "os.system"}, (422,), "scheduler"),
    ("unknown field", GEN, {"__proto__": {}}, (422,), "__proto__"),
    ("unknown field with dots", GEN, {"prompt.__class__": 1}, (422,), "__class__"),
    ("regions an object", GEN, {"regions": {}}, (422,), "regions"),
    ("region without place", GEN, {"regions": [{"prompt": "a"}]}, (422,), "regions"),
    ("region inside out", GEN, {"regions": [{"prompt": "a", "box": [0.9, 0, 0.1, 1]}]}, (422,),
     "regions"),
    ("weights of NaN", GEN, b'{"ensemble": [{"model": "plate", "weight": NaN}]}', (400,), "JSON"),
    ("guidance list of texts", GEN, {"guidance_scale": {"schedule": "list", "values": ["a"]}},
     (422,), "guidance_scale"),
    ("guidance of an unknown shape", GEN, {"guidance_scale": {"schedule": "spiral"}}, (422,),
     "guidance_scale"),
    ("output of an unknown format", GEN, {"output": {"format": "exe"}}, (422,), "output.format"),
    # JSON itself
    ("nothing", GEN, b"", (400,), "JSON"),
    ("half an object", GEN, b'{"prompt": ', (400,), "JSON"),
    ("a list", GEN, b"[]", (400,), "object"),
    ("a text", GEN, b'"prompt"', (400,), "object"),
    ("deep nesting", GEN, DEEP.encode(), (400,), "JSON"),
    ("a lone surrogate", GEN, b'{"prompt": "\\ud800"}', (400,), "JSON"),
    ("not UTF-8", GEN, b'{"prompt": "\xff\xfe"}', (400,), "JSON"),
    ("infinity", GEN, b'{"guidance_scale": Infinity}', (400,), "JSON"),
    ("a pickle", GEN, b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os.", (400,), "JSON"),
    ("too long", GEN, b'{"prompt": "' + b"x" * (1 << 20) + b'"}', (413,), "body"),
    ("zip bomb as a body", GEN, zlib.compress(b"0" * (64 << 20))[:900_000], (400,), "JSON"),
    # pictures
    ("picture from a URL", GEN, {"image": "http://127.0.0.1:1/x.png"}, (422,), "image"),
    ("picture from the cloud's own address", GEN,
     {"image": "http://169.254.169.254/latest/meta-data/"}, (422,), "image"),
    ("picture from a file", GEN, {"image": "file:///etc/passwd"}, (422,), "image"),
    ("picture not base64", GEN, {"image": "%%%"}, (422,), "image"),
    ("picture empty", GEN, {"image": ""}, (422,), "image"),
    ("picture a data URL of nothing", GEN, {"image": "data:image/png;base64,"}, (422,), "image"),
    ("mask without picture", GEN, {"mask": base64.b64encode(PNG).decode()}, (422,), "mask"),
    ("control from a URL", GEN,
     {"controls": [{"model": "canny", "image": "https://example.invalid/x"}]}, (422,), "image"),
    # names
    ("model by traversal", GEN, {"model": "../../etc/passwd"}, (404, 422), "model"),
    ("model by absolute path", GEN, {"model": "/etc/passwd"}, (404, 422), "model"),
    ("model with a null byte", GEN, {"model": "plate\0.safetensors"}, (404, 422), "model"),
    ("model with a version that is not there", GEN, {"model": "plate@9"}, (404,), "version"),
    # OpenAI
    ("n of a million", OPENAI, {"prompt": "a", "n": 10**6}, (422,), "n"),
    ("size of a googol", OPENAI, {"prompt": "a", "size": "99999x99999"}, (422, 413), "size"),
    ("size of letters", OPENAI, {"prompt": "a", "size": "axb"}, (422,), "size"),
    ("size with more", OPENAI, {"prompt": "a", "size": "64x64; rm"}, (422,), "size"),
    ("partial images a hundred", OPENAI, {"prompt": "a", "stream": True, "partial_images": 100},
     (422,), "partial_images"),
    ("stream as a text", OPENAI, {"prompt": "a", "stream": "yes"}, (422,), "stream"),
    ("no prompt", OPENAI, {"model": "plate"}, (422,), "prompt"),
    ("edit from a URL", EDIT, {"prompt": "a", "image": "http://127.0.0.1/x"}, (422,), "image"),
    ("edit without a picture", EDIT, {"prompt": "a"}, (422,), "image"),
    # A1111
    ("steps a text", A1111, {"steps": "'; drop table jobs; --"}, (422,), "steps"),
    ("rounds a million", A1111, {"n_iter": 10**6}, (422,), "n_iter"),
    ("rounds times pictures", A1111, {"n_iter": 8, "batch_size": 8}, (413,), "batch_size"),
    ("sampler unknown", A1111, {"sampler_name": "../../x"}, (422,), "sampler_name"),
    ("override to a path", A1111, {"override_settings": {"sd_model_checkpoint": "/etc/passwd"}},
     (404, 422), "etc/passwd"),
    ("init from a URL", IMG2IMG, {"init_images": ["http://127.0.0.1:22/"]}, (422,), "init_images"),
    ("init of numbers", IMG2IMG, {"init_images": [1, 2]}, (422,), "init_images"),
    ("option of ten kilobytes", "/sdapi/v1/options", {"x": "y" * 10_000}, (422,), "x"),
    ("option of an object", "/sdapi/v1/options", {"x": {"y": 1}}, (422,), "x"),
    ("png-info of no picture", "/sdapi/v1/png-info", {"image": "AAAA"}, (422,), "image"),
    ("extras of no picture", "/sdapi/v1/extra-single-image", {"image": "AAAA"}, (422,), "image"),
    ("extras by a thousand", "/sdapi/v1/extra-single-image",
     {"image": base64.b64encode(PNG).decode(), "upscaling_resize": 1000}, (422,),
     "upscaling_resize"),
    # Hugging Face
    ("inputs a list", HF, {"inputs": ["a"]}, (422,), "inputs"),
    ("parameters a text", HF, {"inputs": "a", "parameters": "b"}, (422,), "parameters"),
    ("parameters with a model", HF, {"inputs": "a", "parameters": {"model": "/x"}}, (422,),
     "model"),
    ("model by traversal in the path", "/hf/..%2f..%2fetc%2fpasswd", {"inputs": "a"}, (404,),
     "passwd"),
    # TorchServe
    ("data a number", TS, {"data": 5}, (400,), "data"),
    ("data nested without end", TS, json.loads('{"data":' * 9 + "1" + "}" * 9), (400,),
     "data"),
    ("grid of a million", TS, {"number_of_images": 10**6}, (400,), "number_of_images"),
    ("instances empty", V1, {"instances": []}, (400,), "instances"),
    ("instances a million", V1, {"instances": ["a"] * 100}, (413,), "instances"),
    ("instances of numbers", V1, {"instances": [1]}, (400,), "instances"),
    ("tensors of two lengths", V2,
     {"inputs": [{"name": "prompt", "data": ["a", "b"]}, {"name": "seed", "data": [1, 2, 3]}]},
     (400,), "inputs"),
    ("tensor without data", V2, {"inputs": [{"name": "prompt"}]}, (400,), "inputs"),
    ("bytes that are no text", TS, b"\xff\xfe\x00binary", (400,), "text"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "statuses", "named"), [c[1:] for c in BODIES], ids=[c[0] for c in BODIES]
)
def test_bad_body_is_refused_and_named(server, path, body, statuses, named):
    if isinstance(body, bytes):
        headers = TEXT if path == TS else JSON
        answer = httpx.post(server.url + path, content=body, headers=headers, timeout=20)
    else:
        answer = httpx.post(server.url + path, json=body, timeout=20)
    assert answer.status_code in statuses, answer.text[:300]
    assert named in answer.text
    assert "Traceback" not in answer.text
    assert len(answer.content) < 20_000  # no echo of what came


@pytest.mark.parametrize(
    ("method", "path", "statuses"),
    [
        ("GET", "/v1/jobs/../../etc/passwd", (404,)),
        ("GET", "/v1/jobs/%2e%2e%2f%2e%2e%2fetc%2fpasswd", (404,)),
        ("GET", "/v1/jobs/x'%20OR%20'1'='1", (404,)),
        ("GET", "/v1/jobs?status=queued'--", (422,)),
        ("GET", "/v1/jobs?limit=-1", (422,)),
        ("GET", "/v1/jobs?limit=99999999999999999999", (422,)),
        ("GET", "/v1/jobs?after=%00", (404,)),
        ("GET", "/v1/jobs/x/images/99999999999999999999", (404,)),
        ("GET", "/v1/images/files/../../../etc/passwd", (404,)),
        ("GET", "/v1/images/files/%2e%2e%2fjobs.sqlite3", (404,)),
        ("GET", "/.env", (404,)),
        ("GET", "/web/../app.py", (404,)),
        ("TRACE", "/", (405, 404)),
        ("CONNECT", "/", (400, 404, 405)),
        ("PATCH", "/v1/generations", (405,)),
        ("POST", "/v1/models/plate:explain", (501,)),
    ],
)
def test_bad_path_or_method_is_refused(server, method, path, statuses):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\n\r\n"
        raw.sendall(head.encode())
        status = int(raw.recv(4096).split()[1])
    assert status in statuses


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n\0\0\0",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\nhost: x\r\n\r\n",
        b"POST /v1/generations HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/generations HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 5\r\n"
        b"content-length: 6\r\n\r\nabcdef",
        b"POST /v1/generations HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
    ],
    ids=[
        "rubbish", "tls", "version", "negative length", "two lengths", "bad chunk", "long path",
        "long header",
    ],
)  # fmt: skip
def test_broken_http_is_refused_or_cut(server, head):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.settimeout(10)
        try:
            raw.sendall(head)
            raw.shutdown(socket.SHUT_WR)
            answer = raw.recv(65536)
        except OSError:
            answer = b""
    assert not answer or answer.split()[1][:1] in (b"4", b"2")
    assert b"Traceback" not in answer


def test_a_body_that_dribbles_is_cut_off(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(
            b"POST /v1/generations HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            b"content-type: application/json\r\ncontent-length: 1000\r\n\r\n"
        )
        began = time.monotonic()
        raw.sendall(b"{")
        answer = raw.recv(4096)
        assert answer.split()[1] == b"408"
        assert time.monotonic() - began < 5


def test_a_length_that_promises_too_much_is_refused_at_once(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(
            b"POST /v1/generations HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            b"content-type: application/json\r\ncontent-length: 99999999999\r\n\r\n"
        )
        answer = raw.recv(65536)
        assert answer.split()[1] == b"413"


def test_multipart_with_too_many_parts_is_refused(server):
    files = [("image", (f"{k}.png", PNG, "image/png")) for k in range(40)]
    answer = httpx.post(server.url + GEN, files=files)
    assert answer.status_code == 400
    fields = {f"f{k}": "x" for k in range(300)}
    answer = httpx.post(server.url + GEN, data=fields, files={"image": ("a", PNG)})
    assert answer.status_code == 400


def test_multipart_without_boundary_is_refused(server):
    headers = {"content-type": "multipart/form-data"}
    answer = httpx.post(server.url + EDIT, content=b"--x\r\n", headers=headers)
    assert answer.status_code == 400


def test_management_takes_no_foreign_archives(server):
    for url in (
        "http://127.0.0.1:1/x.mar", "https://example.invalid/x.mar", "s3://bucket/x.mar",
        "file://../../etc/passwd", "../x.mar", "missing.mar",
    ):  # fmt: skip
        answer = httpx.post(server.management + "/models", params={"url": url})
        assert answer.status_code in (400, 404), url


def test_no_key_no_prompt_and_no_query_in_the_log(tmp_path, capfd):
    with running_server(tmp_path) as server:
        httpx.post(server.url + GEN, json={"prompt": "a secret garden"})
        httpx.post(server.url + GEN + "?token=hidden", json={"prompt": 5})
    output = capfd.readouterr()
    assert "secret garden" not in output.err + output.out
    assert "hidden" not in output.err + output.out


def test_the_server_is_healthy_after_all_this(server):
    health = httpx.get(f"{server.url}/health/ready").json()
    assert health["ready"] is True
    assert health["restarts"] == 0
    body = {"prompt": "still here", "seed": 1}
    assert httpx.post(server.url + GEN, json=body).status_code == 200
    text = httpx.get(f"{server.metrics}/metrics").text
    assert 'status="500"' not in text
    assert json.loads(httpx.get(f"{server.url}/openapi.json").text)["openapi"] == "3.1.0"


def test_there_are_at_least_eighty_cases():
    assert len(BODIES) >= 80
