"""Nodes of a real Ray on loopback, each a tree of processes that can be lost at once."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

__all__ = ["RayNodes", "free_port", "kill_tree"]

_START_S = 120.0
_TRIES = 4


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def kill_tree(pid: int) -> None:
    """Kill a process and all that it started, as a loss of its machine would."""
    try:
        root = psutil.Process(pid)
        found = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in found:  # the first cannot start another meanwhile
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGSTOP)
    for process in [*found, *_children(found)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(found, timeout=10)


def _children(processes: list[psutil.Process]) -> list[psutil.Process]:
    more: list[psutil.Process] = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            more += process.children(recursive=True)
    return more


class RayNodes:
    """A head and other nodes, each with one CPU; they run inside ``with``.

    Args:
        folder: Where Ray writes; its path is short, since sockets lie below it.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._folder = folder
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """Start a node, the one called ``head`` first; return when it is one."""
        for _ in range(_TRIES):  # Ray gives its own processes thirty seconds
            self._nodes[name] = node = self._open(name)
            if self._has_started(name, node):
                return
            self.kill(name)
        raise AssertionError((self._folder / f"{name}.log").read_text()[-3000:])

    def _open(self, name: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        command += ["--num-cpus", "1", "--num-gpus", "0", "--node-name", name]
        command += ["--object-store-memory", str(100 << 20), "--disable-usage-stats"]
        if name == "head":
            command += ["--head", "--port", str(self.port), "--include-dashboard", "false"]
            command += ["--temp-dir", str(self._folder / "r")]
        else:
            command += ["--address", self.address]
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
        with (self._folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def _has_started(self, name: str, node: "subprocess.Popen[bytes]") -> bool:
        """Tell whether a node came to be one."""
        until = time.monotonic() + _START_S
        while time.monotonic() < until and node.poll() is None:
            if "Ray runtime started" in (self._folder / f"{name}.log").read_text():
                return True
            time.sleep(0.2)
        return False

    def kill(self, name: str) -> None:
        """Lose a node with everything on it."""
        node = self._nodes.pop(name)
        kill_tree(node.pid)
        node.wait()

    def __enter__(self) -> "RayNodes":
        """Start nothing: a test says which nodes there are."""
        return self

    def __exit__(self, *_: object) -> None:
        """End every node."""
        for name in list(self._nodes):
            self.kill(name)
