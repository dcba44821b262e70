"""Machines for tests: name spaces of Linux with an address, processes and a home of their own.

They see the files of this machine, and of each other nothing but the network between them.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

__all__ = ["Machine", "can_have_machines", "machines"]

_TOOLS = ("ip", "nsenter", "unshare")
_COPY = """#!/bin/sh
# scp HOST:PATH TARGET, between homes of machines
cp "{root}/${{1%%:*}}/${{1#*:}}" "$2"
"""


def can_have_machines() -> bool:
    """Whether this process may make name spaces, and their programs are there."""
    if not sys.platform.startswith("linux") or os.geteuid() or not all(map(shutil.which, _TOOLS)):
        return False
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"],
                           capture_output=True, check=False)  # fmt: skip
    return tried.returncode == 0


class Machine:
    """One machine.

    Args:
        root: Folder with the homes of all of them, each called by its address.
        address: In the network between them.
    """

    def __init__(self, root: Path, address: str) -> None:
        self.address = address
        self.home = root / address
        self.home.mkdir(parents=True)
        keep = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        prepare = "mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray && exec sleep infinity"
        self._outer = subprocess.Popen([*keep, "sh", "-c", prepare])
        self._started: list[subprocess.Popen[str]] = []
        until = time.monotonic() + 30
        while not (found := psutil.Process(self._outer.pid).children()):
            assert time.monotonic() < until
            time.sleep(0.02)
        self.pid = found[0].pid
        while psutil.Process(self.pid).name() != "sleep":  # what is mounted is mounted
            assert time.monotonic() < until
            time.sleep(0.02)

    def start(self, command: str, **more: object) -> "subprocess.Popen[str]":
        """Start a command of a shell in this machine's home."""
        variables = {
            **os.environ,
            "HOME": str(self.home),
            "PATH": f"{self.home.parent / 'bin'}:{os.environ['PATH']}",
            "RAY_worker_niceness": "0",
            "OMP_NUM_THREADS": "1",
        }
        enter = ["nsenter", "-t", str(self.pid), "--net", "--mount", "--pid", f"--wd={self.home}"]
        started = subprocess.Popen(
            [*enter, "sh", "-c", command], env=variables, text=True, **more,
        )  # type: ignore[call-overload]  # fmt: skip
        self._started.append(started)
        return started

    def run(self, command: str, *, code: int = 0, timeout_s: float = 300.0) -> str:
        """Run a command and return what it said on both outputs."""
        running = self.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            said, _ = running.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            running.kill()
            said, _ = running.communicate()
            raise AssertionError(
                f"{command}: no end within {timeout_s} s: {said[-3000:]}"
            ) from None
        assert running.returncode == code, f"{command}: {running.returncode}: {said[-3000:]}"
        return said

    def lose(self) -> None:
        """Lose the machine with everything on it."""
        if self._outer.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(self.pid).kill()  # the first of a name space takes all along
            self._outer.wait(60)
        for started in self._started:
            started.wait(60)


@contextlib.contextmanager
def machines(root: Path, *addresses: str):
    """Give machines that reach each other, and a ``mezzotint`` and an ``scp`` on their paths."""
    programs = root / "bin"
    programs.mkdir(parents=True)
    (programs / "scp").write_text(_COPY.format(root=root))
    (programs / "mezzotint").write_text(
        f"#!{sys.executable}\nfrom mezzotint.cli.main import main\nmain()\n"
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    with contextlib.ExitStack() as stack:

        def made(address: str) -> Machine:
            machine = Machine(root, address)
            stack.callback(machine.lose)
            return machine

        switch = made("switch")
        found = [made(address) for address in addresses]

        def ip(machine: Machine, *words: str) -> None:
            enter = ["nsenter", "-t", str(machine.pid), "--net", "ip"]
            subprocess.run([*enter, *words], check=True, capture_output=True)

        ip(switch, "link", "add", "bridge", "type", "bridge")
        ip(switch, "link", "set", "bridge", "up")
        for number, machine in enumerate(found):
            peer = ["type", "veth", "peer", "name", "eth0", "netns", str(machine.pid)]
            ip(switch, "link", "add", f"port{number}", *peer)
            ip(switch, "link", "set", f"port{number}", "master", "bridge", "up")
            ip(machine, "addr", "add", f"{machine.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip(machine, "link", "set", device, "up")
            ip(machine, "route", "add", "default", "dev", "eth0")
        yield found
