"""Goodput: mixed ``plate`` requests at Mezzotint, LitServe and FastAPI with a lock.

The same diffusers folder behind three servers that run at once and take turns. Requests
differ in prompt, seed and number of steps and come at random moments at rates from half
to twice what diffusers alone can do. A request is good if its picture comes within three
times what it takes diffusers alone. Needs the packages ``litserve`` and ``fastapi``.
"""

import argparse
import asyncio
import importlib.util
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench._report import ratios, write
from bench.serve import free_ports, wait_for

import mezzotint.models

PLATE = Path(mezzotint.models.__path__[0]) / "builtin" / "plate"
STEPS = (4, 8, 12)
PROMPTS = ("a red apple", "a blue boat on yellow", "two green leaves", "a brown dog")
COMMON = '''
import io, os, sys, threading
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
port = int(sys.argv[2])


def draw(items):
    """One call of the pipeline for requests of one number of steps, a generator each."""
    made = pipe(
        [i["prompt"] for i in items],
        num_inference_steps=items[0]["num_inference_steps"],
        generator=[torch.Generator().manual_seed(i["seed"]) for i in items],
    ).images
    answers = []
    for picture in made:
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        answers.append(stream.getvalue())
    return answers
'''
FASTAPI = (
    COMMON
    + """
import uvicorn
from fastapi import FastAPI, Response

app, lock = FastAPI(), threading.Lock()


@app.get("/ready")
def ready():
    return {"ready": True}


@app.post("/draw")
def handle(item: dict):
    with lock:
        return Response(draw([item])[0], media_type="image/png")


uvicorn.run(app, port=port, log_level="warning")
"""
)
LITSERVE = """
import base64, sys
import litserve


class Plate(litserve.LitAPI):
    def setup(self, device):
        space = {}
        exec(open(sys.argv[3]).read(), space)
        self.draw = space["draw"]

    def decode_request(self, request):
        return request

    def batch(self, items):
        return items

    def predict(self, items):
        answers = [None] * len(items)
        for steps in {i["num_inference_steps"] for i in items}:
            places = [k for k, i in enumerate(items) if i["num_inference_steps"] == steps]
            for place, data in zip(places, self.draw([items[k] for k in places])):
                answers[place] = data
        return answers

    def unbatch(self, answers):
        return answers

    def encode_response(self, data):
        return {"png": base64.b64encode(data).decode()}


if __name__ == "__main__":
    api = Plate(max_batch_size=8, batch_timeout=0.02)
    server = litserve.LitServer(api, accelerator="cpu", timeout=600)
    server.run(port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
"""


def start(name: str, folder: Path) -> tuple[subprocess.Popen[bytes], int, str]:
    """Start one server; return its process, port and the path to post to."""
    ports = free_ports(3)
    environment = {**os.environ, "MEZZOTINT_HOME": str(folder / "home")}
    ready, word, path = f"http://127.0.0.1:{ports[0]}/health", "ok", "/predict"
    if name == "mezzotint":
        flags = ["--port", str(ports[0]), "--management-port", str(ports[1])]
        flags += ["--metrics-port", str(ports[2]), "--models", "plate"]
        command = [str(Path(sys.executable).with_name("mezzotint")), "serve", *flags]
        ready, word = f"http://127.0.0.1:{ports[0]}/health/ready", '"ready":true'
        path = "/v1/generations"
    else:
        script = folder / f"{name}.py"
        script.write_text(FASTAPI if name == "fastapi" else LITSERVE)
        (folder / "common.py").write_text(COMMON)
        command = [sys.executable, str(script), str(PLATE), str(ports[0])]
        command += [str(folder / "common.py")]
        if name == "fastapi":
            ready, word, path = f"http://127.0.0.1:{ports[0]}/ready", "true", "/draw"
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    wait_for(ready, word, process)
    return process, ports[0], path


async def ask(port: int, path: str, item: dict[str, Any]) -> float:
    """Ask for one picture; return the seconds it took, infinity if there was none."""
    body = json.dumps(item).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        f"accept: image/png\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + body)
        answer = await reader.read(-1)
        return time.perf_counter() - began if answer[9:12] == b"200" else float("inf")
    finally:
        writer.close()


def items(count: int, first: int) -> list[dict[str, Any]]:
    """Return mixed requests, none of them twice."""
    return [
        {"prompt": PROMPTS[k % 4], "seed": first + k, "num_inference_steps": STEPS[k % 3]}
        for k in range(count)
    ]


async def storm(
    port: int, path: str, work: list[dict[str, Any]], rate: float
) -> list[tuple[int, float]]:
    """Send requests at random moments; return steps and seconds of each."""
    chance = random.Random(3)

    async def one(item: dict[str, Any]) -> tuple[int, float]:
        return item["num_inference_steps"], await ask(port, path, item)

    tasks: list[asyncio.Task[tuple[int, float]]] = []
    for item in work:
        tasks.append(asyncio.create_task(one(item)))
        await asyncio.sleep(chance.expovariate(rate))
    return [await task for task in tasks]


def main() -> None:
    """Run and write ``bench/results/goodput.json``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    given = parser.parse_args()
    peers = [n for n in ("litserve", "fastapi") if importlib.util.find_spec(n)]
    if not peers:
        raise SystemExit("this needs the packages litserve and fastapi")
    with tempfile.TemporaryDirectory() as name:
        servers: dict[str, tuple[subprocess.Popen[bytes], int, str]] = {}
        try:
            for server in ("mezzotint", *peers):
                servers[server] = start(server, Path(name))
                print(f"up: {server}", flush=True)
            report = measure(servers, given)
        finally:
            for process, _, _ in servers.values():
                os.killpg(process.pid, signal.SIGTERM)
            for process, _, _ in servers.values():
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
    write("goodput", report)


def measure(servers: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Find out what diffusers takes alone, then let the servers take turns at each rate."""
    alone: dict[int, float] = {}
    _, port, path = servers.get("fastapi") or servers["litserve"]
    for server in servers.values():
        for item in items(6, 1_000):  # everybody warm: every number of steps
            asyncio.run(ask(server[1], server[2], item))
    for steps in STEPS:
        taken = [
            asyncio.run(ask(port, path, {**item, "num_inference_steps": steps}))
            for item in items(3, 2_000 + steps * 10)
        ]
        alone[steps] = statistics.median(taken)
    capacity = len(STEPS) / sum(alone.values())
    found: dict[str, Any] = {}
    best: dict[str, list[float]] = {name: [0.0] * given.rounds for name in servers}
    for rate in given.rates:
        goods: dict[str, list[float]] = {name: [] for name in servers}
        late: dict[str, list[float]] = {name: [] for name in servers}
        for round_ in range(given.rounds):
            for name, (_, port, path) in servers.items():
                work = items(given.requests, int(1e6 * (1 + round_)) + int(rate * 1000))
                began = time.perf_counter()
                took = asyncio.run(storm(port, path, work, rate * capacity))
                good = sum(seconds <= 3 * alone[steps] for steps, seconds in took)
                goods[name].append(round(good / (time.perf_counter() - began), 3))
                late[name].append(round(max(s / alone[n] for n, s in took), 2))
                best[name][round_] = max(best[name][round_], goods[name][-1])
            print(f"rate {rate:g}, round {round_ + 1}: {goods}", flush=True)
        found[f"{rate:g}"] = {"good_per_s": goods, "slowest_over_alone": late}
    times = {
        name: ratios([1 / max(b, 1e-3) for b in best["mezzotint"]],
                     [1 / max(b, 1e-3) for b in best[name]])
        for name in servers if name != "mezzotint"
    }  # fmt: skip
    return {
        "command": f"mezzotint bench goodput --rounds {given.rounds} --requests {given.requests}",
        "alone_s": {str(k): round(v, 4) for k, v in alone.items()},
        "diffusers_alone_per_s": round(capacity, 3),
        "rates": found,
        "best_good_per_s": best,
        "times_best_goodput": times,
    }


if __name__ == "__main__":
    main()
