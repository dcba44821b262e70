"""Training: runs that a server starts, each ``mezzotint train`` in a process of its own.

A run outlives the connection that asked for it. A lock on its folder is the run's own and
ends with its process, so that a server that was started anew still knows what runs.
Stopping is what Ctrl-C is: the run writes a checkpoint, and goes on from it when it is
resumed. When the server is stopped, its runs are stopped in the same way; when it is
killed, they go on.

A folder is a server's own when it holds both the text and the lock of a run. Nothing is
written into any other that has something in it, and none is deleted.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mezzotint.errors import InvalidRequest
from mezzotint.files import write_atomically

__all__ = ["CONFIG", "LOG", "MOST_TEXT", "RunConflict", "TrainingRuns"]

CONFIG = "run.toml"
"""The text that a run was asked for with."""
LOG = "run.log"
"""What a run said on standard error since it was started last."""
MOST_TEXT = 64_000
"""Bytes of a configuration."""
_LOCK = "run.lock"
_OUTPUT = "output_dir"
_NICE = 10  # pictures of clients go first where both compute on the same processors
_PROGRAM = (sys.executable, "-c", "from mezzotint.cli.main import main; main()", "train")
_WAIT_S = 0.05
_LOCK_S = 0.3
"""How long another server's look at a lock may stand in a start's way."""
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_MOST_DOTS = 32
_MOST_DEPTH = 32
_WHOLE = range(-(2**63), 2**64)
_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?(?:"{3,5}|\Z)'
    r"|'''.*?(?:'{3,5}|\Z)"
    r'|"(?:\\.|[^"\\\n])*"?'
    r"|'[^'\n]*'?"
    r"|\#[^\n]*"
    r"|[\n=,{}\[\].]",
    re.DOTALL,
)
"""Strings and comments, whole or cut off, and what ends or nests keys of TOML."""
_SECRET = re.compile(
    r"^(AWS_|MEZZOTINT_)|PASSW|(TOKEN|KEY|SECRET|PASS|PASSPHRASE|CREDENTIAL|AUTH)S?(_|$)",
    re.IGNORECASE,
)
_IN_ADDRESS = re.compile(r"://[^/@\s]*:[^/@\s]*@")


class RunConflict(InvalidRequest):
    """What is asked of a run contradicts what is there, or what runs."""


class TrainingRuns:
    """Starts, stops and resumes runs below one folder; safe to use from any thread.

    Args:
        folder: Where the runs' folders are; made when the first run is.
        check: Raises what is wrong with a configuration; told its plain data.
        environment: Variables of the runs. Beside them they get the process's own, without
            those that hold secrets, and without its settings.
        program: Arguments before ``CONFIG.toml --output-dir RUN``.
    """

    def __init__(
        self,
        folder: Path,
        check: Callable[[Mapping[str, Any]], object],
        *,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = _PROGRAM,
    ) -> None:
        self.folder = folder.expanduser().absolute()
        self._check = check
        self.environment = dict(environment or {})
        self._program = tuple(program)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._is_closed = False
        self._lock = threading.RLock()
        """Whoever looks at a run's lock, or takes it, is alone in this process."""

    def create(self, name: str, text: str, *, beside: bool = False) -> None:
        """Start a run with a configuration, in a folder that is new, empty or its own.

        Args:
            name: Of the run, and of its folder.
            text: TOML; an ``output_dir`` in it is set aside.
            beside: Whether another run may be under way.

        Raises:
            InvalidRequest: If ``text`` is no TOML, or longer or deeper than one needs; or if the
                configuration is wrong, by the dotted name of the field.
            RunConflict: If the folder is somebody else's, the run is under way or has
                checkpoints, or another one is under way.
            OSError: If it cannot be written, or no process can be started.
        """
        folder = self.folder / name
        plain = _read(text)
        try:
            self._check({**plain, _OUTPUT: str(folder)})
        except RecursionError:
            raise InvalidRequest("config is nested too deep", field="config") from None
        needs = "" if _OUTPUT in plain else f"{_OUTPUT} = {_quoted(folder)}\n"
        with self._lock:
            if not _is_free(folder) and not _is_ours(folder):
                raise RunConflict(
                    f"there is something called {name} that no server started: choose another name",
                    field="name",
                )
            if any((folder / "checkpoints").glob("step-*")):
                raise RunConflict(
                    f"there is a run {name} with checkpoints: resume it, or choose another name",
                    field="name",
                )
            self._check_alone(name, beside)
            folder.mkdir(parents=True, exist_ok=True)
            with self._taken(name) as lock:
                write_atomically(folder / CONFIG, (needs + text).encode())
                self._spawn(name, lock)

    def resume(self, name: str, *, beside: bool = False) -> None:
        """Start a run again whose folder holds its configuration.

        Args:
            name: Of the run.
            beside: Whether another run may be under way.

        Raises:
            InvalidRequest: If no server started it.
            RunConflict: If it is under way, or another one is.
            OSError: If no process can be started.
        """
        folder = self.folder / name
        with self._lock:
            if not _is_ours(folder):
                raise InvalidRequest(
                    f"run {name} was not started by this server: go on with "
                    f"`mezzotint train CONFIG.toml --output-dir {folder}`",
                    field="name",
                )
            self._check_alone(name, beside)
            with self._taken(name) as lock:
                self._spawn(name, lock)

    def stop(self, name: str) -> bool:
        """Let a run write a checkpoint and end; a second time, let it end at once.

        Returns:
            Whether it was running.
        """
        pid = self.pid(name)
        until = time.monotonic() + 1.0
        while not pid and self.is_running(name) and time.monotonic() < until:
            time.sleep(_WAIT_S)  # another server is starting it
            pid = self.pid(name)
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        return bool(pid)

    def pid(self, name: str) -> int:
        """Return the process of a run; 0 if it does not run, or another server starts it now."""
        return self._look(name)[1]

    def is_running(self, name: str) -> bool:
        """Tell whether a run is under way or being started."""
        return self._look(name)[0]

    def remove(self, name: str) -> None:
        """Delete a run that this or an earlier server started, with all that it made.

        Raises:
            RunConflict: If it runs, or was not started by a server.
            OSError: If it cannot be deleted.
        """
        folder = self.folder / name
        with self._lock:
            if self.is_running(name):
                raise RunConflict(f"run {name} is running: stop it first", field="name")
            if not _is_ours(folder):
                raise RunConflict(
                    f"run {name} was not started by this server: delete {folder} yourself",
                    field="name",
                )
            gone = self.folder / f".{name}.{secrets.token_hex(6)}.removed"
            with self._taken(name):
                folder.rename(gone)  # whoever starts one of that name has a folder of its own
        shutil.rmtree(gone)

    def running(self) -> list[str]:
        """Return the names of the runs that run, sorted."""
        try:
            names = sorted(os.listdir(self.folder))
        except OSError:
            return []
        return [name for name in names if self.is_running(name)]

    def stop_all(self, most_s: float) -> int:
        """Stop what this server started and wait for its checkpoints; kill what takes longer.

        No run is started afterwards.

        Args:
            most_s: Seconds to wait.

        Returns:
            How many were running.
        """
        with self._lock:
            self._is_closed = True
            mine = {n: child for n, child in self._children.items() if child.poll() is None}
        for name in mine:
            self.stop(name)
        until = time.monotonic() + most_s
        while any(c.poll() is None for c in mine.values()) and time.monotonic() < until:
            time.sleep(_WAIT_S)
        for child in mine.values():
            if child.poll() is None:
                child.kill()
                child.wait()
        return len(mine)

    def _check_alone(self, name: str, beside: bool) -> None:
        """Refuse a run that is under way, and a second one unless it was asked for.

        Raises:
            RunConflict: If there is one.
        """
        running = self.running()
        if name in running:
            raise RunConflict(f"run {name} is running already", field="name")
        if running and not beside:
            raise RunConflict(
                f"{', '.join(running)} is training already, on the devices that also draw: stop "
                "it first, or send beside: true",
                field="beside",
            )

    @contextlib.contextmanager
    def _taken(self, name: str) -> Generator[int]:
        """Hold the lock of a run; a process that is given it keeps it.

        Raises:
            RunConflict: If the run is under way.
            OSError: If the lock cannot be opened.
        """
        import fcntl

        lock = os.open(self.folder / name / _LOCK, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o600)
        until = time.monotonic() + _LOCK_S
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise RunConflict(f"run {name} is running already", field="name") from None
                    time.sleep(0.01)
            os.ftruncate(lock, 0)  # who ran before is nobody now
            yield lock
        finally:
            os.close(lock)

    def _spawn(self, name: str, lock: int) -> None:
        """Start the process of a run whose lock is held.

        Raises:
            OSError: If no process can be started.
        """
        if self._is_closed:
            raise OSError("the server is stopping")
        folder = self.folder / name
        if (before := self._children.pop(name, None)) is not None:
            before.wait()  # it let go of the lock: it is at its end
        nice = ("nice", "-n", str(_NICE)) if shutil.which("nice") else ()
        command = (*nice, *self._program, str(folder / CONFIG), f"--output-dir={folder}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _NO_LINK
        log = os.open(folder / LOG, flags, 0o666)
        try:
            child = subprocess.Popen(  # noqa: S603 - our own verb; the configuration was checked
                command,
                env=_without_secrets(os.environ) | {"TQDM_DISABLE": "1"} | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C on a terminal is the server's to hear
            )
        finally:
            os.close(log)
        os.pwrite(lock, str(child.pid).encode(), 0)
        self._children[name] = child

    def _look(self, name: str) -> tuple[bool, int]:
        """Return whether a run holds its lock, and its process, 0 if that is not known yet."""
        import fcntl

        with self._lock:
            child = self._children.get(name)
            if child is not None and child.poll() is not None:
                self._children.pop(name, None)  # reaped
            try:
                lock = os.open(self.folder / name / _LOCK, os.O_RDWR | _NO_LINK)
            except OSError:
                return False, 0
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = os.pread(lock, 20, 0)
                return True, int(text) if text.isdigit() else 0
            finally:
                os.close(lock)
        return False, 0


def _is_free(folder: Path) -> bool:
    """Whether nothing is there, or an empty folder; a start that was cut off leaves its lock."""
    try:
        about = folder.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISDIR(about.st_mode) and set(os.listdir(folder)) <= {_LOCK}


def _is_ours(folder: Path) -> bool:
    """Whether a server started the run in a folder: no link, and both marks are files."""
    try:
        marks = [(folder / mark).lstat().st_mode for mark in (CONFIG, _LOCK)]
        return stat.S_ISDIR(folder.lstat().st_mode) and all(map(stat.S_ISREG, marks))
    except OSError:
        return False


def _read(text: str) -> dict[str, Any]:
    """Read TOML from outside, in a time that its length bounds.

    Raises:
        InvalidRequest: If it is none, or longer, deeper or larger than a run needs.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidRequest("config has letters that no UTF-8 has", field="config") from None
    if size > MOST_TEXT:
        raise InvalidRequest(
            f"config must be at most {MOST_TEXT} bytes of TOML, got {size}", field="config"
        )
    _check_shape(text)
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(f"config is not valid TOML: {error}", field="config") from None
    except (ValueError, RecursionError):  # more digits than Python reads
        raise InvalidRequest(
            "config is not valid TOML: a number is too long, or tables too deep", field="config"
        ) from None
    rest: list[Any] = [plain]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            rest += value.values()
        elif isinstance(value, list):
            rest += value
        elif isinstance(value, int) and value not in _WHOLE:
            raise InvalidRequest("config has a whole number beyond 64 bits", field="config")
    return plain


def _check_shape(text: str) -> None:
    """Refuse keys of many parts and deep nesting: the parser's time grows with their square.

    Raises:
        InvalidRequest: If there is one.
    """
    dots = depth = 0
    for found in _TOKEN.finditer(text):
        piece = found[0]
        if piece == ".":
            dots += 1
        elif piece in "\n=,{}[]":
            dots = 0
            depth += (piece in "{[") - (piece in "}]")
        if dots > _MOST_DOTS or depth > _MOST_DEPTH:
            line = text.count("\n", 0, found.start()) + 1
            raise InvalidRequest(
                f"config is nested too deep in line {line}: keys have at most {_MOST_DOTS} dots, "
                f"brackets stand at most {_MOST_DEPTH} deep",
                field="config",
            )


def _without_secrets(variables: Mapping[str, str]) -> dict[str, str]:
    """Return variables but for settings and those that look as if they held a secret."""
    return {
        name: value
        for name, value in variables.items()
        if not _SECRET.search(name)
        and (name.lower().endswith("_proxy") or not _IN_ADDRESS.search(value))
    }


def _quoted(path: Path) -> str:
    """Return a path as a string of TOML: a JSON string is one."""
    return json.dumps(str(path))
