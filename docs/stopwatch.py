"""Stopwatch: how long a new user takes from a fresh clone to each of the first four goals.

    python -m docs.stopwatch [-o RESULT.json] [--steps N]

Clones this repository into an empty folder, with a home of its own, and does what the README
and the tutorials say, command by command as they stand there (those of a server that go on
until they are stopped are started, used and stopped). What a person would bring is put
there: a folder of an own model, and for the team a second home. Reading time is not in it.
The environment is made anew: packages come from pip's cache where it has them.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.documentation import commands  # noqa: E402 - the pages as the tests read them

_PORTS = ("--port", "0", "--management-port", "0", "--metrics-port", "0")


class Newcomer:
    """A checkout, a home, and the seconds that each goal took.

    Args:
        folder: Empty; everything lies below it.
    """

    def __init__(self, folder: Path) -> None:
        self.clone = folder / "mezzotint"
        self.home = folder / "home"
        self.seconds: dict[str, float] = {}
        self.environment = {
            **os.environ,
            "MEZZOTINT_HOME": str(self.home),
            "PATH": f"{self.clone / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        }

    @contextlib.contextmanager
    def goal(self, name: str) -> Iterator[None]:
        """Take the time of what is done inside."""
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)
        print(f"{name}: {self.seconds[name]:.0f} s", file=sys.stderr, flush=True)

    def do(self, *words: str, **more: str) -> str:
        """Run one command in the clone; its standard output.

        Raises:
            RuntimeError: If it fails; with what it said.
        """
        done = subprocess.run(  # noqa: S603 - commands of our own pages
            words, cwd=self.clone, env={**self.environment, **more},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr[-2000:]}")
        return done.stdout

    @contextlib.contextmanager
    def serving(self, *words: str) -> Iterator[str]:
        """Run a server of a page on free ports until the block ends; its address."""
        process = subprocess.Popen(  # noqa: S603 - our own server
            [*words, *_PORTS], cwd=self.clone, env=self.environment,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            lines = iter(process.stdout or ())
            yield next(line for line in lines if line.startswith("generation")).split()[1]
        finally:
            process.terminate()
            process.wait(120)


def first_picture(person: Newcomer) -> None:
    """Do what the README says first."""
    words = ["git", "clone", "--quiet", str(ROOT), str(person.clone)]
    subprocess.run(words, check=True)  # noqa: S603 - a fresh clone
    (level, words) = commands(person.clone / "README.md")[0]
    print(person.do(*words).strip(), level, file=sys.stderr)


def own_checkpoint(person: Newcomer) -> None:
    """Add a model by its path, look at it, draw with it."""
    page = commands(person.clone / "docs" / "tutorials" / "own-checkpoint.md")
    theirs, ours = "~/models/dreamlike.safetensors", str(person.home.parent / "dream")
    for _, words in page[:4]:
        person.do(*(ours if word == theirs else word for word in words))


def lora(person: Newcomer, steps: int) -> None:
    """Train a LoRA as the tutorial does, and draw with it."""
    for level, words in commands(person.clone / "docs" / "tutorials" / "lora.md"):
        if level == "slow":
            person.do(*(f"loop.steps={steps}" if w == "loop.steps=20" else w for w in words))


def team(person: Newcomer) -> None:
    """Make keys, serve with them, and draw from a second home as another machine would."""
    said = person.do("mezzotint", "keys", "new", "--name", "alice", "--scopes", "generate")
    key = next(line.split()[-1] for line in said.splitlines() if line.startswith("key:"))
    line = next(line for line in said.splitlines() if "sha256:" in line)
    keys = person.clone / "keys.txt"
    keys.write_text(line[line.index("sha256:") :] + "\n")
    keys.chmod(0o600)
    anywhere = "0.0.0.0"  # noqa: S104 - as the tutorial says
    serve = ("mezzotint", "serve", "--models", "plate", "--host", anywhere)
    with person.serving(*serve, "--api-keys", str(keys)) as address:
        here = address.replace(anywhere, "127.0.0.1")
        person.do(
            "mezzotint", "generate", "a red apple", "--server", here, "--server-key", key,
            MEZZOTINT_HOME=str(person.home.parent / "other"),
        )  # fmt: skip


def main() -> None:
    """Reach each goal and write the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--steps", type=int, default=400, help="of the LoRA; its file has 400")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        person = Newcomer(Path(folder))
        with person.goal("first picture"):
            first_picture(person)
        where = "from mezzotint.models.cards import builtin_cards as b; print(b()['plate'].path)"
        model = person.do("python", "-c", where).strip()
        shutil.copytree(model, person.home.parent / "dream")
        with person.goal("own checkpoint"):
            own_checkpoint(person)
        with person.goal(f"trained LoRA ({given.steps} steps)"):
            lora(person, given.steps)
        with person.goal("served team"):
            team(person)
    text = json.dumps({"seconds": person.seconds, "cores": os.cpu_count()}, indent=2)
    if given.output:
        given.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
