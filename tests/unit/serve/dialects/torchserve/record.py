"""Calls of TorchServe, and what a real TorchServe 0.12 answered to them.

``answers.json`` beside this file was written by ``python record.py``, run by the Python of
an environment that has ``torchserve``, ``torch``, ``httpx`` and Java; the tests of this
folder hold our answers against it.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

ANSWERS = Path(__file__).with_name("answers.json")
ARCHIVES = {"echo.mar": ("echo", "1.0"), "echo2.mar": ("echo", "2.0")}
HANDLER = """
def handle(data, context):
    return None if data is None else ["hello" for _ in data]
"""
# The listener (M management, I inference, X metrics), the method, the path and a JSON body.
CALLS = """
M POST /models
M POST /models?url=
M POST /models?url=nope.mar
M POST /models?url=http://127.0.0.1:9/x.mar
M POST /models?url=s3://x/y.mar
M POST /models?url=ftp://x/y.mar
M POST /models?url=../x.mar
M POST /models?url=echo.mar&runtime=bad
M POST /models?url=echo.mar&runtime=
M POST /models?url=echo.mar&initial_workers=1&synchronous=true
M POST /models?url=echo.mar
M POST /models?url=echo2.mar&initial_workers=1
M POST /models?url=echo2.mar&initial_workers=1
M POST /models?url=echo.mar&model_name=named&runtime=python3
M POST /models?url=echo.mar&model_name=other&batch_size=x&initial_workers=
M POST /models?url=echo.mar&model_name=third&initial_workers=-1
M POST /models?url=echo.mar&model_name=fourth&initial_workers=1&synchronous=false
M POST /models/?url=echo.mar&model_name=fifth&batch_size=4&max_batch_delay=50&response_timeout=7&startup_timeout=9
M POST /models?url=echo.mar&model_name=sixth&initial_workers=x&synchronous=x&s3_sse_kms=x&max_batch_delay=
M POST /models {"url": "echo.mar", "model_name": "j1"}
M POST /models {"model_name": "j2"}
M POST /models {"url": "echo.mar", "model_name": "j3", "initial_workers": "x"}
M POST /models {"url": "echo.mar", "model_name": "j4", "initial_workers": 0, "batch_size": 2}
M POST /models {"url": "echo.mar", "model_name": "j5", "initial_workers": "1", "synchronous": "yes"}
M POST /models {"url": "echo.mar", "model_name": "j6", "synchronous": 1}
M POST /models {"url": "echo.mar", "model_name": "j7", "batch_size": null, "unknown": [1]}
M POST /models {"url": "echo.mar", "model_name": "j8", "initial_workers": 1.5}
M POST /models []
M PUT /models/j1 {"min_worker": 1}
WAIT
M GET /models
M GET /models/
M GET /models?limit=1
M GET /models?limit=2&next_page_token=1
M GET /models?limit=
M GET /models?limit=x
M GET /models?limit=1.5
M GET /models?limit=-1
M GET /models?limit=100
M GET /models?limit=101
M GET /models?limit=0
M GET /models?next_page_token=
M GET /models?next_page_token=x
M GET /models?next_page_token=99
M GET /models?next_page_token=-1
M GET /models?limit=99&next_page_token=2
M HEAD /models
M GET /models/echo
M GET /models/echo/
M GET /models/echo/1.0
M GET /models/echo/2.0
M GET /models/echo/2.0/
M GET /models/echo/all
M GET /models/echo/9.9
M GET /models/echo?customized=true
M GET /models/echo?customized=false
M GET /models/echo?customized=x
M GET /models/echo/1.0?customized=true
M GET /models/named
M GET /models/fifth
M GET /models/j4
M GET /models/nope
M GET /models/nope/all
M GET /models/no%20pe
M GET /models/echo/1.0/extra
M PUT /models/echo
M PUT /models/echo/?min_worker=1&synchronous=true
M PUT /models/echo?min_worker=1&synchronous=true
M PUT /models/echo?min_worker=1&max_worker=1&synchronous=TRUE
M PUT /models/echo/1.0?min_worker=1&synchronous=true
M PUT /models/echo/2.0?min_worker=0&synchronous=true
M PUT /models/echo/9.9?min_worker=1
M PUT /models/nope?min_worker=1
M PUT /models/nope/1.0?min_worker=1
M PUT /models/echo?min_worker=2&max_worker=1
M PUT /models/echo?max_worker=0
M PUT /models/echo?min_worker=-1
M PUT /models/echo?max_worker=-1
M PUT /models/echo?min_worker=x
M PUT /models/echo?min_worker=
M PUT /models/echo?min_worker=1&synchronous=yes
M PUT /models/echo?min_worker=1&synchronous=1
M PUT /models/echo?number_gpu=1&min_worker=1&synchronous=true
M PUT /models/echo?number_gpu=x&min_worker=1&synchronous=true
M PUT /models/echo?min_worker=1&synchronous=true&timeout=x
M PUT /models/echo?min_worker=1&synchronous=true&timeout=-1
M PUT /models/echo?model_version=1.0&min_worker=1&synchronous=true
M PUT /models/echo?model_version=8.0
M PUT /models/named?min_worker=0&synchronous=true
M PUT /models/named?min_worker=1
WAIT
M PUT /models
M PUT /models/echo/2.0/set-default
M PUT /models/echo/1.0/set-default
M PUT /models/echo/1.0/set-default/
M PUT /models/echo/9.0/set-default
M PUT /models/nope/1.0/set-default
M PUT /models/echo/set-default
M PUT /models/echo/1.0/other
M GET /models/echo/1.0/set-default
M POST /models/echo
M POST /models/echo/1.0
M PATCH /models
M PATCH /models/echo
M DELETE /models
M OPTIONS /
M OPTIONS /models
M OPTIONS /models/echo
M OPTIONS /models/nope
M GET /
M POST /
M GET /nothing
M GET /ping
M GET /predictions/echo
M GET /api-description
M GET /api-description/
M POST /api-description
M GET /workflows
M GET /workflows/x
M POST /workflows?url=x.war
M POST /workflows
M DELETE /workflows/x
M PUT /workflows/x
M GET /token
M GET /token?type=inference
M GET /metrics
M GET /v1/models/echo
M GET /v1/models/nope
M GET /v2/models/echo
I GET /ping
I POST /ping
I HEAD /ping
I GET /ping/
I GET /ping/x
I OPTIONS /
I OPTIONS /predictions/echo
I OPTIONS /predictions/nope
I GET /api-description
I GET /
I GET /nothing
I POST /nothing
I GET /some/where
I GET /models
I GET /models/echo
I POST /models?url=x
I PUT /models/echo
I DELETE /models/echo
I POST /predictions/echo
I PUT /predictions/echo
I GET /predictions/echo
I DELETE /predictions/echo
I PATCH /predictions/echo
I POST /predictions/echo/
I POST /predictions/echo/1.0
I POST /predictions/echo/1.0/more/of/it
I POST /predictions/echo/9.9
I POST /predictions/nope
I POST /predictions/nope/1.0
I POST /predictions
I POST /predictions/
I POST /predictions/third
I POST /predictions/echo/2.0
I POST /explanations/echo
I POST /explanations/nope
I POST /explanations/echo/9.9
I POST /invocations
I POST /invocations?model_name=echo
I POST /invocations?model_name=nope
I POST /models/echo/invoke
I POST /models/nope/invoke
I POST /echo/predict
I POST /nope/predict
I POST /echo/1.0/predict
I POST /echo/9.9/predict
I POST /v1/models/echo:predict {"instances": ["hello"]}
I POST /v1/models/nope:predict {"instances": ["hello"]}
I POST /v1/models/echo:explain {"instances": ["hello"]}
I GET /v1/models/echo
I GET /v1/models/nope
I GET /v1/models
I GET /v2
I GET /v2/health/live
I GET /v2/health/ready
I GET /v2/models/echo
I GET /v2/models/nope
I POST /v2/models/nope/infer {"inputs": []}
I GET /metrics
I POST /wfpredict/x
I POST /wfpredict
I POST /predictions/echo?x=1
X GET /metrics
X POST /metrics
X GET /metrics?name[]=ts_queue_latency_microseconds
X GET /metrics?name[]=nothing
X GET /nothing
X GET /
X GET /ping
M DELETE /models/echo
M DELETE /models/echo/2.0
M DELETE /models/echo/9.9
M DELETE /models/nope
M DELETE /models/nope/1.0
M DELETE /models/named/
M DELETE /models/fourth?synchronous=true&timeout=x
M DELETE /models/third?synchronous=true
M DELETE /models/fifth/1.0/
M DELETE /models/echo
M DELETE /models/echo
M GET /models
I POST /predictions/echo
I GET /ping
"""


def calls() -> Iterator[tuple[str, str, str, Any] | None]:
    """Yield listener, method, path and body of each call; None where workers need time."""
    for line in CALLS.strip().splitlines():
        if line == "WAIT":
            yield None
            continue
        listener, method, path, *rest = line.split(" ", 3)
        yield listener, method, path, json.loads(rest[0]) if rest else None


def ask(
    send: Callable[..., httpx.Response], wait: Callable[[], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Send every call; yield it as a line with its status, media type and body."""
    for call in calls():
        if call is None:
            wait()
            continue
        listener, method, path, body = call
        if body is not None:
            content, headers = json.dumps(body), {"content-type": "application/json"}
        else:
            sends = listener == "I" and method in ("POST", "PUT", "PATCH")
            content, headers = "hello" if sends else "", {}
        answer = send(listener, method, path, content=content, headers=headers)
        kind = answer.headers.get("content-type", "")
        shown = answer.json() if "json" in kind and answer.content else answer.text
        line = f"{listener} {method} {path}" + ("" if body is None else f" {json.dumps(body)}")
        yield line, {"status": answer.status_code, "type": kind, "body": outline(shown)}


def outline(body: Any) -> Any:
    """Keep the names of a description and of metrics, and any other body as it is."""
    if isinstance(body, dict) and "openapi" in body:
        paths = {
            path: {
                method: [operation.get("operationId"), [p["name"] for p in operation["parameters"]]]
                for method, operation in methods.items()
            }
            for path, methods in body["paths"].items()
        }
        return {"openapi": body["openapi"], "info": body["info"], "paths": paths}
    if isinstance(body, str) and body.startswith("# HELP"):
        types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", body, re.MULTILINE))
        labels = dict(re.findall(r"^(\w+)\{([^}]*)\}", body, re.MULTILINE))
        return {
            name: [kind, sorted(re.findall(r'(\w+)="', labels.get(name, "")))]
            for name, kind in types.items()
        }
    return body


def main() -> None:
    """Start a real TorchServe, ask it, and write down what it answers."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        store = folder / "store"
        store.mkdir()
        for file, (name, version) in ARCHIVES.items():
            model = {"modelName": name, "modelVersion": version, "handler": "h.py:handle"}
            manifest = {"runtime": "python", "archiverVersion": "0.12.0", "model": model}
            with zipfile.ZipFile(store / file, "w") as archive:
                archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
                archive.writestr("h.py", HANDLER)
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(5)]
        ports = [one.getsockname()[1] for one in sockets]
        for one in sockets:
            one.close()
        bases = {key: f"http://127.0.0.1:{port}" for key, port in zip("IMX", ports, strict=False)}
        (folder / "config.properties").write_text(
            f"inference_address={bases['I']}\nmanagement_address={bases['M']}\n"
            f"metrics_address={bases['X']}\ngrpc_inference_port={ports[3]}\n"
            f"grpc_management_port={ports[4]}\nmetrics_mode=prometheus\nvmargs=-Xmx512m\n"
        )
        command = [
            sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs",
            "--model-store", str(store), "--disable-token-auth", "--enable-model-api",
            "--ts-config", str(folder / "config.properties"),
        ]  # fmt: skip
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        process = subprocess.Popen(
            command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "TMPDIR": place},
        )  # fmt: skip
        try:
            with httpx.Client(timeout=180) as client:
                until = time.monotonic() + 240
                while True:
                    try:
                        client.get(f"{bases['I']}/ping")
                        break
                    except httpx.HTTPError:
                        assert time.monotonic() < until and process.poll() is None
                        time.sleep(0.5)
                answers = list(
                    ask(
                        lambda listener, method, url, **more: client.request(
                            method, bases[listener] + url, **more
                        ),
                        lambda: time.sleep(15),
                    )
                )
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)
    text = ",\n".join(f"  {json.dumps(list(pair))}" for pair in answers)
    ANSWERS.write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main()
