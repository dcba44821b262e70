"""Serve: Mezzotint beside TorchServe and LitServe on the same models, with the same clients.

The servers run at once and take turns under load, at 1, 8, 32 and 128 connections, each of
which asks for one picture after another. Every request differs from all others. Beside
pictures per second stands what a picture costs, in core-milliseconds of all processes of
its server: of all figures the one that says most on a machine with other work. Needs
the packages ``torchserve`` (and Java 17) and ``litserve``.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from bench._report import RESULTS, machine, ratios
from bench._servers import Server, installed, start, stop

PROMPTS = ("a red apple", "a blue boat on yellow", "two green leaves", "a brown dog")
LEVELS = (1, 8, 32, 128)
PEERS = ("torchserve", "torchserve-as-packed", "litserve")
OURS = {"plate-gan": ("mezzotint", "mezzotint-two-workers"), "plate": ("mezzotint",)}


def body(model: str, seed: int) -> dict[str, Any]:
    """Return one request, of no other's seed."""
    if model == "plate-gan":
        return {"number_of_images": 1, "seed": seed}
    return {"prompt": PROMPTS[seed % 4], "seed": seed, "num_inference_steps": 8}


async def load(
    server: Server, model: str, connections: int, seconds: float, first: int
) -> tuple[list[float], float]:
    """Ask for one picture after another on every connection.

    Returns:
        Seconds that each request took, and pictures per second.
    """
    spent: list[float] = []
    began = time.perf_counter()

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 22)
        seed = first + number * 100_000
        while time.perf_counter() < began + seconds:
            seed += 1
            content = json.dumps(body(model, seed)).encode()
            head = (
                f"POST {server.path} HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\n"
                f"accept: image/png\r\ncontent-type: application/json\r\n"
                f"content-length: {len(content)}\r\n\r\n"
            )
            asked = time.perf_counter()
            writer.write(head.encode() + content)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            size = int(answer.split(b"content-length:")[1].split(b"\r\n")[0])
            picture = await reader.readexactly(size)
            spent.append(time.perf_counter() - asked)
            if b" 200" not in answer[:15] or picture[:3] not in (b"\xff\xd8\xff", b"\x89PN"):
                raise SystemExit(f"{answer.decode()}{picture[:500]!r}")
        writer.close()

    await asyncio.gather(*(client(k) for k in range(connections)))
    return spent, len(spent) / (time.perf_counter() - began)


def core_seconds(server: Server) -> float:
    """Return the seconds of all cores that a server's processes have used so far."""
    root = psutil.Process(server.process.pid)
    times = [p.cpu_times() for p in (root, *root.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def main() -> None:
    """Run and write one model's part of ``bench/results/serve.json``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=["plate-gan", "plate"], default="plate-gan")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--warm-up", type=float, default=3.0, metavar="SECONDS",
        help="of each server at each level, not counted: ours learns which call sizes pay",
    )  # fmt: skip
    parser.add_argument("--levels", type=int, nargs="+", default=LEVELS)
    parser.add_argument("--no-write", action="store_true")
    given = parser.parse_args()
    peers = installed(PEERS)
    if not peers:
        raise SystemExit("this needs the packages torchserve (with Java 17) or litserve")
    report: dict[str, Any] = {
        "command": f"mezzotint bench serve --model {given.model} --seconds {given.seconds:g} "
        f"--rounds {given.rounds} --warm-up {given.warm_up:g}",
        "machine": machine(),
        "connections": {},
    }
    with tempfile.TemporaryDirectory() as name:
        servers: dict[str, Server] = {}
        try:
            for server in (*OURS[given.model], *peers):
                servers[server] = start(server, given.model, Path(name))
                print(f"up: {server}", flush=True)
            for connections in given.levels:
                report["connections"][str(connections)] = level(servers, connections, given)
        finally:
            stop(servers.values())
    if given.no_write:
        return
    path = RESULTS / "serve.json"
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps({**earlier, given.model: report}, indent=2) + "\n")


def level(
    servers: dict[str, Server], connections: int, given: argparse.Namespace
) -> dict[str, Any]:
    """Measure all servers in turn at one number of connections."""
    rates: dict[str, list[float]] = {name: [] for name in servers}
    latencies: dict[str, list[float]] = {name: [] for name in servers}
    cores: dict[str, float] = dict.fromkeys(servers, 0.0)
    for round_ in range(given.rounds + 1):
        for name, server in servers.items():
            first = (round_ + 1) * 100_000_000 + connections * 10_000_000
            seconds = given.seconds if round_ else given.warm_up
            before = core_seconds(server)
            spent, rate = asyncio.run(load(server, given.model, connections, seconds, first))
            if round_:  # the first is a warm-up
                rates[name].append(rate)
                latencies[name] += spent
                cores[name] += core_seconds(server) - before
    found: dict[str, Any] = {}
    for name, spent in latencies.items():
        spent.sort()
        found[name] = {
            "requests": len(spent),
            "requests_per_second": [round(r, 2) for r in rates[name]],
            "p50_ms": round(spent[len(spent) // 2] * 1000, 1),
            "p99_ms": round(spent[int(len(spent) * 0.99)] * 1000, 1),
            "core_ms": round(cores[name] / len(spent) * 1000, 2),
        }
    seconds = {name: [1 / rate for rate in found_rates] for name, found_rates in rates.items()}
    for own in OURS[given.model]:
        which = own.removeprefix("mezzotint").lstrip("-").replace("-", "_")
        for name in servers:
            if not name.startswith("mezzotint"):
                what = f"{which}_times_{name}".lstrip("_").replace("-", "_")
                found[what] = ratios(seconds[own], seconds[name])
    print(f"{connections} connections: {json.dumps(found)}", flush=True)
    return found


if __name__ == "__main__":
    main()
