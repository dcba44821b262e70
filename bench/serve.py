"""Serve: Mezzotint beside TorchServe on the same GAN, the same wire, the same clients.

Both servers run at once and take turns under load, at 1, 8 and 32 connections. The
TorchServe handler is a plain one as its users write it (torch, eval, no_grad, the
whole batch in one call), with batching on. Needs the packages ``torchserve`` and Java.
"""

import argparse
import asyncio
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from bench._report import RESULTS, machine, ratios

import mezzotint.models

GAN = Path(mezzotint.models.__path__[0]) / "builtin" / "plate-gan"
HANDLER = '''
import io, json
from pathlib import Path
import torch
from PIL import Image
from safetensors.torch import load_file
from mezzotint.models.gan import GanConfig, Generator


class Plain:
    """What a user writes: load, seed each item, one call for the batch, JPEG out."""

    def initialize(self, ctx):
        folder = Path(ctx.system_properties["model_dir"])
        config = GanConfig.load(folder)
        self.generator = Generator(config)
        state = load_file(folder / "generator.safetensors")
        self.generator.load_state_dict(state, strict=False)
        self.generator.float().eval()
        self.length, self.classes = config.latent_size, config.num_classes

    def handle(self, data, ctx):
        rows, labels = [], []
        for item in data:
            body = item.get("body") or item.get("data") or {}
            body = json.loads(body) if isinstance(body, (bytes, bytearray, str)) else body
            seeded = torch.Generator().manual_seed(int(body.get("seed", 0)))
            rows.append(torch.randn(1, self.length, generator=seeded))
            labels.append(int(body.get("class_label", 0)))
        with torch.no_grad():
            latents = torch.cat(rows)
            if self.classes:
                pictures = self.generator(latents, torch.tensor(labels))
            else:
                pictures = self.generator(latents)
        pixels = (pictures.float() / 2 + 0.5).clamp(0, 1).mul(255).round().byte()
        answers = []
        for place, picture in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
            stream = io.BytesIO()
            Image.fromarray(picture).save(stream, "JPEG", quality=95)
            ctx.set_response_content_type(place, "image/jpeg")
            answers.append(stream.getvalue())
        return answers
'''


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
    """Wait until ``url`` answers with ``word`` in it."""
    until = time.monotonic() + 900
    while time.monotonic() < until and process.poll() is None:
        try:
            if word in httpx.get(url).text:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    raise SystemExit(f"{url} never came up")


def start_mezzotint(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start ``mezzotint serve`` as a user does."""
    ports = free_ports(3)
    names = ("--port", "--management-port", "--metrics-port")
    flags = [text for pair in zip(names, map(str, ports), strict=True) for text in pair]
    command = [str(Path(sys.executable).with_name("mezzotint")), "serve", *flags]
    with (folder / "mezzotint.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--models", "plate-gan"], stdout=log, stderr=log,
            env={**os.environ, "MEZZOTINT_HOME": str(folder / "home")}, start_new_session=True,
        )  # fmt: skip
    wait_for(f"http://127.0.0.1:{ports[0]}/health/ready", '"ready":true', process)
    return process, ports[0]


def start_torchserve(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start TorchServe with the plain handler."""
    model = folder / "store" / "plate-gan"
    shutil.copytree(GAN, model)
    (model / "MAR-INF").mkdir()
    described = {"modelName": "plate-gan", "handler": "plain.py", "modelVersion": "1.0",
                 "configFile": "model-config.yaml"}  # fmt: skip
    manifest = {"runtime": "python", "archiverVersion": "0.12.0", "model": described}
    (model / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    (model / "plain.py").write_text(HANDLER)
    (model / "model-config.yaml").write_text(
        "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 8\nmaxBatchDelay: 5\n"
    )
    ports = free_ports(5)
    names = ("inference_address", "management_address", "metrics_address")
    lines = [f"{n}=http://127.0.0.1:{p}" for n, p in zip(names, ports, strict=False)]
    lines += [f"grpc_inference_port={ports[3]}", f"grpc_management_port={ports[4]}"]
    (folder / "config.properties").write_text("\n".join([*lines, "disable_system_metrics=true"]))
    command = [
        sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs",
        "--model-store", str(folder / "store"), "--models", "plate-gan=plate-gan",
        "--disable-token-auth", "--ts-config", str(folder / "config.properties"),
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (folder / "torchserve.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "PATH": path, "TMPDIR": str(folder)},
        )  # fmt: skip
    wait_for(f"http://127.0.0.1:{ports[1]}/models/plate-gan", "READY", process)
    return process, ports[0]


async def load(port: int, connections: int, seconds: float, first: int) -> list[float]:
    """Ask for one picture after another on every connection; return the latencies."""
    spent: list[float] = []
    until = time.perf_counter() + seconds

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        seed = first + number * 1_000_000
        while time.perf_counter() < until:
            seed += 1
            body = json.dumps({"number_of_images": 1, "seed": seed}).encode()
            head = (
                f"POST /predictions/plate-gan HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            began = time.perf_counter()
            writer.write(head.encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b" 200" not in answer[:15]:
                raise SystemExit(answer.decode())
            size = answer.split(b"content-length:")[1].split(b"\r\n")[0]
            await reader.readexactly(int(size))
            spent.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(client(k) for k in range(connections)))
    return spent


def main() -> None:
    """Run and write ``bench/results/serve.json``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if importlib.util.find_spec("ts") is None or shutil.which("java") is None:
        raise SystemExit("this needs the package torchserve and Java 17")
    report: dict[str, Any] = {"machine": machine(), "model": "plate-gan", "levels": {}}
    with tempfile.TemporaryDirectory() as name:
        servers: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
        try:
            servers["mezzotint"] = start_mezzotint(Path(name))
            servers["torchserve"] = start_torchserve(Path(name))
            for connections in (1, 8, 32):
                report["levels"][str(connections)] = level(servers, connections, given)
        finally:
            for process, _ in servers.values():
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "serve.json").write_text(json.dumps(report, indent=2) + "\n")


def level(servers: dict[str, Any], connections: int, given: argparse.Namespace) -> dict[str, Any]:
    """Measure both servers in turn at one number of connections."""
    rates: dict[str, list[float]] = {name: [] for name in servers}
    latencies: dict[str, list[float]] = {name: [] for name in servers}
    for round_ in range(given.rounds + 1):
        for name, (_, port) in servers.items():
            first = (round_ + 1) * 100_000_000 * connections
            spent = asyncio.run(load(port, connections, given.seconds, first))
            if round_:  # the first is a warm-up
                rates[name].append(len(spent) / given.seconds)
                latencies[name] += spent
    found: dict[str, Any] = {}
    for name, spent in latencies.items():
        spent.sort()
        found[name] = {
            "requests_per_second": [round(r, 1) for r in rates[name]],
            "p50_ms": round(spent[len(spent) // 2] * 1000, 1),
            "p99_ms": round(spent[int(len(spent) * 0.99)] * 1000, 1),
        }
    each = ratios([1 / r for r in rates["mezzotint"]], [1 / r for r in rates["torchserve"]])
    found["times_torchserve"] = each
    print(f"{connections} connections: {json.dumps(found)}", flush=True)
    return found


if __name__ == "__main__":
    main()
