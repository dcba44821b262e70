"""A PostgreSQL server for tests, Debian's, started as a user of its own in a folder of its own."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["Postgres", "find_postgres"]


def find_postgres() -> Path | None:
    """Return the folder of Debian's PostgreSQL programs, None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found and sys.platform.startswith("linux") else None


class Postgres:
    """One server on a Unix socket; it runs inside ``with``, and forgets nothing when stopped.

    Args:
        fsync: Whether what is committed outlives a loss of power (slower).
    """

    def __init__(self, *, fsync: bool = False) -> None:
        tools = find_postgres()
        assert tools is not None
        self._tools = tools
        self.folder = Path(tempfile.mkdtemp(prefix="mzpg-", dir="/tmp"))
        self._user: list[str] = []
        if not os.geteuid():  # PostgreSQL refuses to run as root
            shutil.chown(self.folder, "postgres")
            self._user = ["runuser", "-u", "postgres", "--"]
        self._fsync = "on" if fsync else "off"
        data = self.folder / "data"
        self._do("initdb", "-D", data, "-A", "trust", "-U", "mz", "--no-sync")

    @property
    def url(self) -> str:
        """Its address as ``jobs.url`` takes it."""
        return f"postgresql+psycopg://mz@/postgres?host={self.folder}"

    def _do(self, program: str, *arguments: Any) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
        command = [*self._user, str(self._tools / program), *map(str, arguments)]
        subprocess.run(command, check=True, **quiet)  # type: ignore[call-overload]

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-k {self.folder} -c listen_addresses='' -c fsync={self._fsync}"
        folder, log = self.folder / "data", self.folder / "log"
        self._do("pg_ctl", "-D", folder, "-l", log, "-w", "-o", options, "start")

    def stop(self) -> None:
        """Stop it at once, as a loss of power would."""
        self._do("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop")

    def __enter__(self) -> "Postgres":
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and leave nothing behind."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
