"""Attacks on the transport and on what decodes: bombs, floods, smuggling, slow clients.

The fake decodes no pictures, so those cases run on the real service in a worker.
"""

import base64
import contextlib
import io
import json
import os
import socket
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from tests.serving import Door, RunningServer, open_door, running_server

from mezzotint.service.config import WorkerConfig
from mezzotint.service.workers.supervisor import WorkerSupervisor

GEN = "/v1/generations"
EDIT = "/v1/images/edits"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    limits = {"body_bytes": 1 << 20, "body_s": 2.0, "connections": 64}
    folder = tmp_path_factory.mktemp("attacks")
    with running_server(folder, serve={"limits": limits}) as running:
        yield running
        health = httpx.get(f"{running.url}/health/ready").json()
        assert (health["ready"], health["restarts"]) == (True, 0)
        assert 'status="500"' not in httpx.get(f"{running.metrics}/metrics").text


def exchange(server: RunningServer, data: bytes, *, seconds: float = 10.0) -> bytes:
    """Send bytes as they are; return all that comes back until the server closes or rests."""
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as raw:
        with contextlib.suppress(OSError):
            raw.sendall(data)
        raw.settimeout(1.0)
        with contextlib.suppress(OSError):
            while piece := raw.recv(1 << 16):
                received += piece
    return received


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def part(name: str, body: bytes, more: str = "") -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + body + b"\r\n"


FORM = {"content-type": "multipart/form-data; boundary=b"}
MULTIPART_BOMBS = {
    "many tiny parts": b"".join(part(f"f{k}", b"") for k in range(9000)) + b"--b--\r\n",
    "many files": b"".join(part("image[]", b"x", '; filename="a"') for k in range(900)) + b"--b--",
    "headers without end": b"--b\r\n" + b"x-y: z\r\n" * 50_000 + b"\r\nx\r\n--b--",
    "one long header": b"--b\r\nx: " + b"y" * 500_000 + b"\r\n\r\nx\r\n--b--",
    "no end": part("prompt", b"x" * 1000),
    "boundaries alone": b"--b\r\n" * 100_000,
    "name of a megabyte": part("n" * 500_000, b"x") + b"--b--\r\n",
    "file name that climbs": part("image", b"x", '; filename="../../../etc/cron.d/x"')
    + b"--b--\r\n",
    "charset that is none": part("_charset_", b"utf-7") + part("prompt", b"+ADw-") + b"--b--\r\n",
    "transfer encoding inside": b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"'
    b"\r\nContent-Transfer-Encoding: base64\r\n\r\n####\r\n--b--\r\n",
}


NO_PICTURES = ("file name that climbs", "transfer encoding inside")


@pytest.mark.parametrize("path", [GEN, EDIT, "/predictions/plate"])
@pytest.mark.parametrize("name", MULTIPART_BOMBS)
def test_a_multipart_bomb_is_a_4xx_in_little_time(server, path, name):
    began = time.monotonic()
    answer = httpx.post(server.url + path, content=MULTIPART_BOMBS[name], headers=FORM, timeout=20)
    is_only_a_picture = name in NO_PICTURES and path != EDIT  # the fake decodes none
    assert 400 <= answer.status_code < 500 or is_only_a_picture, (name, answer.text[:200])
    assert time.monotonic() - began < 10
    assert len(answer.content) < 20_000


@pytest.mark.parametrize(
    "boundary", ["", "x" * 5000, 'b"; boundary=c', "é".encode().decode("latin-1")]
)
def test_a_boundary_that_is_none_is_a_4xx(server, boundary):
    head = {"content-type": f"multipart/form-data; boundary={boundary}".encode("latin-1")}
    answer = httpx.post(server.url + EDIT, content=b"--b\r\n\r\n--b--", headers=head)
    assert 400 <= answer.status_code < 500


JSON_BOMBS = {
    "a number of a hundred thousand digits": b'{"seed": ' + b"9" * 100_000 + b"}",
    "an exponent without end": b'{"width": 1e999999999}',
    "minus infinity": b'{"guidance_scale": -Infinity}',
    "NaN": b'{"strength": NaN}',
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "deep lists in a field": b'{"regions": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a key twice": b'{"width": 65, "width": 1000000000}',
    "many keys": b"{" + b",".join(b'"k%d":1' % k for k in range(50_000)) + b"}",
    "a lone low surrogate": b'{"prompt": "\\udc00"}',
    "surrogates in the wrong order": b'{"negative_prompt": "\\udc00\\ud800"}',
    "an overlong encoding": b'{"prompt": "\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"prompt": "\xed\xa0\x80"}',
    "UTF-16": '{"prompt": "x"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"prompt": 5}',
    "a null in a name": b'{"model": "plate\\u0000"}',
    "a comment": b'{"prompt": "x" /* y */}',
    "boolean for a number": b'{"num_inference_steps": true}',
    "an empty name": b'{"": 1}',
}


NATIVE_FIELDS = ("many keys", "a null in a name", "boolean for a number", "an empty name")


@pytest.mark.parametrize("name", JSON_BOMBS)
@pytest.mark.parametrize("path", [GEN, "/v1/jobs", "/v1/images/generations", "/sdapi/v1/txt2img"])
def test_a_json_bomb_is_a_4xx(server, path, name):
    head = {"content-type": "application/json"}
    began = time.monotonic()
    answer = httpx.post(server.url + path, content=JSON_BOMBS[name], headers=head, timeout=20)
    known = {"a key twice": (422, 413, 404)}  # a door may not know the field
    if path.startswith("/sdapi") and name in NATIVE_FIELDS:  # A1111 takes any field, as A1111
        assert answer.status_code == 200
        return
    assert 400 <= answer.status_code < 500, (name, answer.text[:200])
    assert answer.status_code in known.get(name, range(400, 500))
    assert time.monotonic() - began < 5
    assert len(answer.content) < 20_000


SMUGGLED = b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
HOST = b"host: 127.0.0.1\r\n"
SMUGGLING = {
    "length and chunks": b"POST /v1/plan HTTP/1.1\r\n" + HOST + b"content-length: 4\r\n"
    b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunks twice": b"POST /v1/plan HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n"
    b"transfer-encoding: identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a space before the colon": b"POST /v1/plan HTTP/1.1\r\n" + HOST
    + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a folded header": b"POST /v1/plan HTTP/1.1\r\n" + HOST + b"x: a\r\n transfer-encoding: chunked\r\n"
    b"content-length: 0\r\n\r\n",
    "a plus in the length": b"POST /v1/plan HTTP/1.1\r\n" + HOST + b"content-length: +2\r\n\r\n{}",
    "a hex length": b"POST /v1/plan HTTP/1.1\r\n" + HOST + b"content-length: 0x2\r\n\r\n{}",
    "two different lengths": b"POST /v1/plan HTTP/1.1\r\n" + HOST
    + b"content-length: 2, 44\r\n\r\n{}" + SMUGGLED,
    "a chunk larger than any": b"POST /v1/plan HTTP/1.1\r\n" + HOST
    + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}",
    "an unknown coding": b"POST /v1/plan HTTP/1.1\r\n" + HOST + b"transfer-encoding: xchunked\r\n\r\n{}",
    "a null in a header": b"GET /v1/models HTTP/1.1\r\n" + HOST + b"x: a\0b\r\n\r\n",
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /v1/models HTTP/1.1\r\n" + HOST + b"host: evil.example\r\n\r\n",
    "a foreign absolute target": b"GET http://evil.example/v1/models HTTP/1.1\r\nhost: evil.example\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", SMUGGLING)
def test_nothing_is_smuggled(server, name):
    answer = exchange(server, SMUGGLING[name])
    found = statuses(answer)
    assert all(400 <= status < 500 for status in found[:1]), (name, answer[:300])
    assert found.count(200) == 0, (name, found)  # what hid behind it was not served
    assert b"plate" not in answer


def test_a_websocket_upgrade_is_refused_plainly(server):
    head = (
        b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    answer = exchange(server, head)
    assert b"101" not in answer[:20]
    assert statuses(answer)[0] == 404  # a web socket is at /ws alone


def test_grpc_and_tokens_are_refused_plainly(server):
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
    answer = exchange(server, preface)
    assert not answer or 400 <= statuses(answer)[0] < 500
    token = httpx.get(f"{server.management}/token", params={"type": "inference"})
    assert (token.status_code, token.json()["type"]) == (404, "ResourceNotFoundException")


def test_header_floods_are_cut(server):
    flood = b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n" + b"".join(
        b"x-%d: y\r\n" % k for k in range(20_000)
    )
    answer = exchange(server, flood + b"\r\n")
    assert not answer or 400 <= statuses(answer)[0] < 500
    assert httpx.get(f"{server.url}/health/live").status_code == 200


def test_slow_clients_hold_no_place_for_ever(server):
    """Sixty connections that dribble a header line now and then; others are served."""
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(60)]
    for raw in slow:
        raw.sendall(b"POST /v1/generations HTTP/1.1\r\nhost: 127.0.0.1\r\n")
    began, closed = time.monotonic(), 0
    assert httpx.post(server.url + GEN, json={"seed": 1}, timeout=10).status_code == 200
    while closed < len(slow) and time.monotonic() - began < 30:
        closed = 0
        for raw in slow:
            try:
                raw.sendall(b"x: y\r\n")
                raw.settimeout(0.01)
                closed += raw.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                closed += 1
        time.sleep(0.5)
    assert closed == len(slow)
    for raw in slow:
        raw.close()
    assert httpx.get(f"{server.url}/health/ready").status_code == 200


def test_a_reader_that_never_reads_costs_itself_only(server):
    raws = []
    for seed in range(8):
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        raw.connect(("127.0.0.1", server.port))
        body = json.dumps({"seed": seed, "num_images": 8}).encode()
        raw.sendall(
            b"POST /v1/generations HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body
        )
        raws.append(raw)
    time.sleep(0.5)
    assert httpx.post(server.url + GEN, json={"seed": 99}, timeout=10).status_code == 200
    for raw in raws:
        raw.close()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/jobs/..%2f..%2f..%2fetc%2fpasswd"),
        ("GET", "/v1/jobs/job-x/images/..%2f..%2fjobs.sqlite3"),
        ("GET", "/v1/jobs/%00"),
        ("GET", "/v1/jobs/" + "a" * 5000),
        ("DELETE", "/v1/jobs/..%5c..%5cx"),
        ("POST", "/predictions/..%2f..%2fetc"),
        ("POST", "/predictions/%252e%252e%252fetc"),
        ("POST", "/hf/%2e%2e/%2e%2e/etc/passwd"),
        ("POST", "/v1/models/..%2fplate:predict"),
        ("GET", "/v2/models/..%2f..%2fplate"),
        ("GET", "/v1/runs/..%2f..%2fetc/grid"),
    ],
)
def test_a_name_that_climbs_is_a_404(server, method, path):
    head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\n\r\n"
    answer = exchange(server, head.encode())
    assert statuses(answer)[0] in (400, 404, 405), answer[:200]
    assert b"root:" not in answer


# Pictures: decoded by the real service, in a worker of its own.


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    home = tmp_path_factory.mktemp("pictures")
    store = tmp_path_factory.mktemp("store")
    options = {
        "models": {"home": str(home), "backend": "torch", "placement": {"device": "cpu"}},
        "model_store": str(store), "images": {"max_pixels": 1 << 20}, "engine": {"buckets": [2]},
    }  # fmt: skip
    service = WorkerSupervisor(WorkerConfig(options=options))
    with open_door(service=service) as opened:
        opened.do(service.start)
        opened.front.memory["store"] = store
        yield opened
        assert opened.do(service.health)["restarts"] == 0
        opened.do(service.close)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, data: bytes, *more: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [
        chunk(b"IHDR", head),
        *more,
        chunk(b"IDAT", zlib.compress(data, 9)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(picture: Image.Image, kind: str, **more: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **more)
    return stream.getvalue()


def frames(count: int, side: int) -> bytes:
    first, *rest = [Image.new("P", (side, side), k % 256) for k in range(count)]
    return saved(first, "GIF", save_all=True, append_images=rest, optimize=False)


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
PICTURES = {
    "a header of four billion pixels": png(65535, 65535, b"\0" * 1000),
    "a bomb of zeros": png(30_000, 30_000, b"\0" * (20 << 20)),
    "no side": png(0, 0, b""),
    "a text chunk of 64 MiB": png(
        8, 8, b"\0" * 200, chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"A" * (64 << 20), 9))
    ),
    "a profile of 64 MiB": png(
        8, 8, b"\0" * 200, chunk(b"iCCP", b"x\0\0" + zlib.compress(b"A" * (64 << 20), 9))
    ),
    "a GIF": frames(2, 16),
    "a GIF of many frames": frames(500, 64),
    "SVG": SVG,
    "SVG behind a PNG signature": b"\x89PNG\r\n\x1a\n" + SVG,
    "PDF": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
    "TIFF": saved(Image.new("RGB", (8, 8)), "TIFF"),
    "ICO": saved(Image.new("RGB", (16, 16)), "ICO"),
    "a zip": b"PK\x03\x04" + b"\0" * 100,
    "half a PNG": png(64, 64, b"\0" * 20_000)[:60],
    "wrong checksum": png(8, 8, b"\0" * 200)[:-20] + b"\0" * 20,
    "HTML": b"<html><script>alert(1)</script></html>",
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_is_none_is_a_4xx_that_names_it(door, name):
    body = {
        "prompt": "x", "num_inference_steps": 2, "strength": 0.5, "width": 64, "height": 64,
        "image": base64.b64encode(PICTURES[name]).decode(),
    }  # fmt: skip
    began = time.monotonic()
    answer = door.http.post(GEN, json=body)
    assert 400 <= answer.status_code < 500, (name, answer.status_code, answer.text[:200])
    assert answer.json().get("field") in ("image", "body"), answer.text[:300]
    assert time.monotonic() - began < 20
    inspected = door.http.post(
        "/v1/inspect", content=PICTURES[name], headers={"content-type": "image/png"}
    )
    assert 400 <= inspected.status_code < 500, (name, inspected.text[:200])


def test_a_polyglot_is_read_as_the_picture_it_is_and_nothing_else(door):
    """A good PNG with a script and a zip behind its end: pixels count, the rest is not kept."""
    script = b"<script>alert(1)</script>"
    good = saved(Image.new("RGB", (64, 64), "red"), "PNG") + script + b"PK\x05\x06" + b"\0" * 18
    body = {"prompt": "x", "num_inference_steps": 2, "strength": 0.5, "width": 64, "height": 64}
    answer = door.http.post(GEN, json={**body, "image": base64.b64encode(good).decode()})
    assert answer.status_code == 200, answer.text
    data = base64.b64decode(answer.json()["images"][0]["b64"])
    assert b"<script>" not in data
    assert answer.headers["x-content-type-options"] == "nosniff"


URLS = (
    "http://127.0.0.1:22/", "http://[::1]/", "http://0/", "http://2130706433/", "https://a.example/x.png",
    "http://169.254.169.254/latest/", "file:///etc/passwd", "gopher://127.0.0.1/", "ftp://h/x",
    "//127.0.0.1/x", "data:text/html,<script>", "data:image/png;base64,%00", "/etc/passwd",
    "\\\\host\\share", "jar:http://x!/y", "http://user:pass@127.0.0.1/",
)  # fmt: skip


@pytest.mark.parametrize("url", URLS)
def test_no_url_in_a_picture_field_is_ever_opened(door, url):
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    port = listener.getsockname()[1]
    url = url.replace("127.0.0.1:22", f"127.0.0.1:{port}")
    for path, body in (
        (GEN, {"prompt": "x", "image": url}),
        (GEN, {"prompt": "x", "regions": [{"prompt": "y", "mask": url}]}),
        (GEN, {"prompt": "x", "controls": [{"model": "c", "image": url}]}),
        (EDIT, {"prompt": "x", "image": url}),
        ("/sdapi/v1/img2img", {"prompt": "x", "init_images": [url]}),
        ("/sdapi/v1/png-info", {"image": url}),
        ("/predictions/plate", {"data": "x", "image": url}),
    ):
        answer = door.http.post(path, json=body)
        assert 400 <= answer.status_code < 500, (path, answer.text[:200])
        assert "image" in answer.text or "mask" in answer.text, (path, answer.text[:200])
    with pytest.raises(TimeoutError):
        listener.accept()
    listener.close()


def linked(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"modelName": "x"}}))
        info = zipfile.ZipInfo("weights.pt")
        info.external_attr = 0o120777 << 16
        packed.writestr(info, "/etc/passwd")


def climbing(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("../../x.safetensors", b"x")
        packed.writestr("MAR-INF/MANIFEST.json", "{}")


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"modelName": "x"}}))
        packed.writestr("a.safetensors", b"\0" * (300 << 20))


def overlapping(path: Path) -> None:
    """One entry whose local header is used by two names."""
    bomb_bytes = io.BytesIO()
    with zipfile.ZipFile(bomb_bytes, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"modelName": "x"}}))
        packed.writestr("a.json", b"{}" * 1000)
        twin = zipfile.ZipInfo("b.json")
        first = packed.getinfo("a.json")
        twin.header_offset, twin.compress_size = first.header_offset, first.compress_size
        twin.file_size, twin.CRC, twin.compress_type = first.file_size, first.CRC, 8
        packed.filelist.append(twin)
        packed.NameToInfo["b.json"] = twin
        packed._didModify = True
    path.write_bytes(bomb_bytes.getvalue())


def pickled(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"modelName": "x"}}))
        packed.writestr("model.pt", b"\x80\x04cos\nsystem\n(S'true'\ntR.")


@pytest.mark.parametrize("name", NO_PICTURES)
@pytest.mark.parametrize("path", [GEN, EDIT, "/predictions/plate"])
def test_an_upload_that_is_no_picture_is_named(door, path, name):
    content = part("prompt", b"x") + MULTIPART_BOMBS[name]
    answer = door.http.post(path, content=content, headers=FORM)
    assert 400 <= answer.status_code < 500
    assert "image" in answer.text
    assert "cron" not in answer.text


@pytest.mark.parametrize("write", [linked, climbing, bomb, overlapping, pickled])
def test_a_hostile_archive_is_a_4xx_and_leaves_nothing(door, write):
    store: Path = door.front.memory["store"]
    write(store / f"{write.__name__}.mar")
    answer = door.management.post("/models", params={"url": f"{write.__name__}.mar"})
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["code"] == answer.status_code
    names = [m["name"] for m in door.do(door.service.models)]
    assert write.__name__ not in names
    assert not os.path.lexists(store.parent / "x.safetensors")


def test_the_worker_is_healthy_after_all_this(door):
    body = {"prompt": "x", "num_inference_steps": 2, "width": 64, "height": 64, "seed": 1}
    assert door.http.post(GEN, json=body).status_code == 200
