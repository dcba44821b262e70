"""Servers side by side: Mezzotint, TorchServe, LitServe, and FastAPI with a lock.

All serve the same model folder. The peers run what their users write: load once, a
generator per picture, one call for a batch, pictures encoded in the worker. They batch
up to eight requests and run one worker, which has all cores.
"""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import httpx

import mezzotint.models

__all__ = ["Server", "free_ports", "installed", "start", "stop", "wait_for"]

BUILTIN = Path(mezzotint.models.__path__[0]) / "builtin"

_GAN = '''
import io
from pathlib import Path
import torch
from PIL import Image
from safetensors.torch import load_file
from mezzotint.models.families.gan import GanConfig, Generator

KIND = "image/jpeg"


def load(folder):
    config = GanConfig.load(Path(folder))
    generator = Generator(config)
    generator.load_state_dict(load_file(Path(folder) / "generator.safetensors"), strict=False)
    return generator.float().eval(), config


def draw(model, items):
    """One call for all, JPEG out."""
    generator, config = model
    latents = torch.cat([
        torch.randn(1, config.latent_size, generator=torch.Generator().manual_seed(i["seed"]))
        for i in items
    ])
    more = [torch.tensor([i.get("class_label", 0) for i in items])] if config.num_classes else []
    with torch.no_grad():
        pictures = generator(latents, *more)
    pixels = (pictures.float() / 2 + 0.5).clamp(0, 1).mul(255).round().byte()
    answers = []
    for picture in pixels.permute(0, 2, 3, 1).numpy():
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "JPEG", quality=95)
        answers.append(stream.getvalue())
    return answers
'''
_PLATE = '''
import io
import torch
from diffusers import DiffusionPipeline

KIND = "image/png"


def load(folder):
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, items):
    """One call of the pipeline for the requests of each number of steps, PNG out."""
    answers = [None] * len(items)
    for steps in {i["num_inference_steps"] for i in items}:
        places = [k for k, i in enumerate(items) if i["num_inference_steps"] == steps]
        made = pipe(
            [items[k]["prompt"] for k in places],
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(items[k]["seed"]) for k in places],
        ).images
        for place, picture in zip(places, made):
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            answers[place] = stream.getvalue()
    return answers
'''
_DRAWERS = {"plate-gan": _GAN, "plate": _PLATE}

_TORCHSERVE = '''
import json


class Plain:
    """A handler as the examples have it."""

    def initialize(self, ctx):
        self.model = load(ctx.system_properties["model_dir"])

    def handle(self, data, ctx):
        items = []
        for item in data:
            body = item.get("body") or item.get("data") or {}
            items.append(json.loads(body) if isinstance(body, (bytes, bytearray, str)) else body)
        answers = draw(self.model, items)
        for place in range(len(answers)):
            ctx.set_response_content_type(place, KIND)
        return answers
'''
_LITSERVE = """
import sys
import litserve
import litserve.server
from fastapi import Response

# It looks for the package "mcp" and then uses what only "fastmcp" brings.
litserve.server._MCP_AVAILABLE = False


class Api(litserve.LitAPI):
    def setup(self, device):
        self.model = load(sys.argv[1])

    def batch(self, items):
        return items

    def predict(self, items):
        return draw(self.model, items)

    def unbatch(self, answers):
        return answers

    def encode_response(self, data):
        return Response(data, media_type=KIND)


if __name__ == "__main__":
    api = Api(max_batch_size=8, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", timeout=600)
    server.run(port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
"""
_FASTAPI = """
import sys, threading
import uvicorn
from fastapi import FastAPI, Response

app, lock, model = FastAPI(), threading.Lock(), load(sys.argv[1])


@app.get("/health")
def health():
    return "ok"


@app.post("/predict")
def handle(item: dict):
    with lock:
        return Response(draw(model, [item])[0], media_type=KIND)


uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""


@dataclass(frozen=True, slots=True)
class Server:
    """One server that is up, and where it takes requests."""

    process: subprocess.Popen[bytes]
    port: int
    path: str


def installed(names: Iterable[str]) -> list[str]:
    """Return those servers that can be started here."""
    packages = {"torchserve": "ts", "torchserve-as-packed": "ts"}
    found = [n for n in names if importlib.util.find_spec(packages.get(n, n))]
    return [n for n in found if n not in packages or shutil.which("java")]


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(url: str, word: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until ``url`` answers 200 with ``word`` in it."""
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        try:
            answer = httpx.get(url)
            if answer.status_code == 200 and word in answer.text:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    raise SystemExit(f"{url} never came up")


def start(name: str, model: str, folder: Path) -> Server:
    """Start one server on one of the built-in models.

    Args:
        name: ``mezzotint``, ``mezzotint-two-workers`` (``worker.count = 2``),
            ``torchserve``, ``torchserve-as-packed`` (one request a call, as its archiver
            packs a model if nothing else is said), ``litserve`` or ``fastapi``.
        model: ``plate`` or ``plate-gan``.
        folder: Where its files and its log (``NAME.log``) go.
    """
    if name.startswith("mezzotint"):
        return _start_mezzotint(name, model, folder)
    if name.startswith("torchserve"):
        return _start_torchserve(name, model, folder)
    port = free_ports(1)[0]
    script = folder / f"{name}-{model}.py"
    script.write_text(_DRAWERS[model] + (_FASTAPI if name == "fastapi" else _LITSERVE))
    command = [sys.executable, str(script), str(BUILTIN / model), str(port)]
    process = _spawn(command, folder, name)
    wait_for(f"http://127.0.0.1:{port}/health", "ok", process)
    return Server(process, port, "/predict")


def stop(servers: Iterable[Server]) -> None:
    """End servers: asked first, then killed."""
    for server in servers:
        os.killpg(server.process.pid, signal.SIGTERM)
    for server in servers:
        try:
            server.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()


def _spawn(command: list[str], folder: Path, name: str, **more: str) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own, with a log."""
    with (folder / f"{name}.log").open("w") as log:
        return subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, **more},
        )  # fmt: skip


def _start_mezzotint(name: str, model: str, folder: Path) -> Server:
    """Start ``mezzotint serve`` as a user does."""
    ports = free_ports(3)
    names = ("--port", "--management-port", "--metrics-port")
    flags = [text for pair in zip(names, map(str, ports), strict=True) for text in pair]
    command = [str(Path(sys.executable).with_name("mezzotint")), "serve", *flags]
    own = {
        "MEZZOTINT_HOME": str(folder / f"home-{name}"),
        "MEZZOTINT_WORKER__COUNT": "2" if name == "mezzotint-two-workers" else "1",
    }
    process = _spawn([*command, "--models", model], folder, name, **own)
    wait_for(f"http://127.0.0.1:{ports[0]}/health/ready", '"ready":true', process)
    is_gan = model == "plate-gan"
    return Server(process, ports[0], f"/predictions/{model}" if is_gan else "/v1/generations")


def _start_torchserve(name: str, model: str, folder: Path) -> Server:
    """Start TorchServe with the plain handler."""
    store = folder / f"store-{name}-{model}"
    rows, delay_ms = (8, 5) if name == "torchserve" else (1, 100)
    place = store / model
    shutil.copytree(BUILTIN / model, place)
    (place / "MAR-INF").mkdir()
    described = {"modelName": model, "handler": "plain.py", "modelVersion": "1.0",
                 "configFile": "model-config.yaml"}  # fmt: skip
    manifest = {"runtime": "python", "archiverVersion": "0.12.0", "model": described}
    (place / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    (place / "plain.py").write_text(_DRAWERS[model] + _TORCHSERVE)
    (place / "model-config.yaml").write_text(
        f"minWorkers: 1\nmaxWorkers: 1\nbatchSize: {rows}\nmaxBatchDelay: {delay_ms}\n"
        "responseTimeout: 600\n"
    )
    ports = free_ports(5)
    names = ("inference_address", "management_address", "metrics_address")
    lines = [f"{n}=http://127.0.0.1:{p}" for n, p in zip(names, ports, strict=False)]
    lines += [f"grpc_inference_port={ports[3]}", f"grpc_management_port={ports[4]}"]
    settings = folder / f"{name}-{model}.properties"
    settings.write_text("\n".join([*lines, "disable_system_metrics=true", "job_queue_size=1000"]))
    command = [
        sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs",
        "--model-store", str(store), "--models", f"{model}={model}",
        "--disable-token-auth", "--ts-config", str(settings),
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = folder / f"tmp-{name}"
    own.mkdir()
    process = _spawn(command, folder, name, PATH=path, TMPDIR=str(own), LOG_LOCATION=str(own),
                     METRICS_LOCATION=str(own))  # fmt: skip
    wait_for(f"http://127.0.0.1:{ports[1]}/models/{model}", "READY", process)
    return Server(process, ports[0], f"/predictions/{model}")
