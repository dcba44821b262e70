"""Training: runs that a server starts, each ``mezzotint train`` in a process of its own.

A run outlives the connection that asked for it. A lock on its folder is the run's own and
ends with its process, so that a server that was started anew still knows what runs.
Stopping is what Ctrl-C is: the run writes a checkpoint, and goes on from it when it is
resumed. When the server is stopped, its runs are stopped in the same way; when it is
killed, they go on.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mezzotint.errors import InvalidField, InvalidRequest
from mezzotint.files import write_atomically

__all__ = ["CONFIG", "LOG", "TrainingRuns"]

CONFIG = "run.toml"
"""The text that a run was asked for with."""
LOG = "run.log"
"""What a run said on standard error since it was started last."""
_LOCK = "run.lock"
_OUTPUT = "output_dir"
_NICE = 10  # pictures of clients go first where both compute on the same processors
_PROGRAM = (sys.executable, "-c", "from mezzotint.cli.main import main; main()", "train")
_WAIT_S = 0.05
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


class TrainingRuns:
    """Starts, stops and resumes runs below one folder.

    Args:
        folder: Where the runs' folders are; made when the first run is.
        check: Raises what is wrong with a configuration; told its plain data.
        home: Folder of the installation, in which a run looks its base up; "" is the
            process's own.
        program: Arguments before ``CONFIG.toml --output-dir RUN``.
    """

    def __init__(
        self,
        folder: Path,
        check: Callable[[Mapping[str, Any]], object],
        *,
        home: str = "",
        program: Sequence[str] = _PROGRAM,
    ) -> None:
        self.folder = folder.expanduser().absolute()
        self._check = check
        self._home = home
        self._program = tuple(program)
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def prepare(self, name: str, text: str) -> None:
        """Check a run's configuration and write it into its folder.

        Args:
            name: Of the run, and of its folder.
            text: TOML; an ``output_dir`` in it is set aside.

        Raises:
            InvalidField: If ``text`` is no TOML.
            InvalidRequest: If the configuration is wrong, by the dotted name of the field.
            OSError: If it cannot be written.
        """
        try:
            plain = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InvalidField(f"config is not valid TOML: {error}", field="config") from None
        folder = self.folder / name
        self._check({**plain, _OUTPUT: str(folder)})
        folder.mkdir(parents=True, exist_ok=True)
        needs = "" if _OUTPUT in plain else f"{_OUTPUT} = {_quoted(folder)}\n"
        write_atomically(folder / CONFIG, (needs + text).encode())

    def start(self, name: str) -> None:
        """Start or resume a run whose folder holds its configuration.

        Raises:
            InvalidRequest: If it runs already, or there is no configuration.
            OSError: If no process can be started.
        """
        import fcntl

        folder = self.folder / name
        if not (folder / CONFIG).is_file():
            raise InvalidRequest(
                f"run {name} was not started by this server: go on with "
                f"`mezzotint train CONFIG.toml --output-dir {folder}`",
                field="name",
            )
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o600)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, lock)  # the run keeps its own
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InvalidRequest(f"run {name} is running already", field="name") from None
            os.ftruncate(lock, 0)  # who ran before is nobody now
            if (before := self._children.pop(name, None)) is not None:
                before.wait()  # it let go of the lock: it is at its end
            log = stack.enter_context((folder / LOG).open("wb"))
            nice = ("nice", "-n", str(_NICE)) if shutil.which("nice") else ()
            command = (*nice, *self._program, str(folder / CONFIG), f"--output-dir={folder}")
            environment = os.environ | {"TQDM_DISABLE": "1"}  # bars are no words
            if self._home:
                environment["MEZZOTINT_HOME"] = self._home
            child = subprocess.Popen(  # noqa: S603 - our own verb; the configuration was checked
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C on a terminal is the server's to hear
            )
            os.pwrite(lock, str(child.pid).encode(), 0)
            self._children[name] = child

    def stop(self, name: str) -> bool:
        """Let a run write a checkpoint and end; a second time, let it end at once.

        Returns:
            Whether it was running.
        """
        pid = self.pid(name)
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        return bool(pid)

    def pid(self, name: str) -> int:
        """Return the process of a run, 0 if it does not run."""
        import fcntl

        child = self._children.get(name)
        if child is not None and child.poll() is not None:
            del self._children[name]  # reaped
        try:
            lock = os.open(self.folder / name / _LOCK, os.O_RDWR | _NO_LINK)
        except OSError:
            return 0
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(lock, 20, 0)
            return int(text) if text.isdigit() else 0
        finally:
            os.close(lock)
        return 0

    def remove(self, name: str) -> None:
        """Delete a run that this or an earlier server started, with all that it made.

        Raises:
            InvalidRequest: If it runs, or was not started by a server.
            OSError: If it cannot be deleted.
        """
        folder = self.folder / name
        if self.pid(name):
            raise InvalidRequest(f"run {name} is running: stop it first", field="name")
        if not (folder / CONFIG).is_file():
            raise InvalidRequest(
                f"run {name} was not started by this server: delete {folder} yourself",
                field="name",
            )
        shutil.rmtree(folder)

    def running(self) -> list[str]:
        """Return the names of the runs that run, sorted."""
        try:
            names = sorted(os.listdir(self.folder))
        except OSError:
            return []
        return [name for name in names if self.pid(name)]

    def stop_all(self, most_s: float) -> int:
        """Stop what this server started and wait for its checkpoints; kill what takes longer.

        Args:
            most_s: Seconds to wait.

        Returns:
            How many were running.
        """
        mine = {name: child for name, child in self._children.items() if child.poll() is None}
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


def _quoted(path: Path) -> str:
    """Return a path as a string of TOML: a JSON string is one."""
    return json.dumps(str(path))
