"""The way from one machine to three in docs/cluster.md, as it is written.

Each machine is a name space of Linux: its own address, processes, home and token.
"""

import importlib.util
import json
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from tests.machines import Machine, can_have_machines, machines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.skipif(not can_have_machines(), reason="name spaces need root on Linux"),
]
PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
PATIENCE_S = 300.0
ASK = """
import base64, hashlib, json, sys, urllib.request
for number in range(int(sys.argv[1]), int(sys.argv[2])):
    body = {"prompt": "a red apple", "seed": number, "num_inference_steps": 4, "model": "plate"}
    asked = urllib.request.Request(
        "http://127.0.0.1:8080/v1/generations", json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    answer = json.load(urllib.request.urlopen(asked, timeout=240))
    print(hashlib.sha256(base64.b64decode(answer["images"][0]["b64"])).hexdigest())
"""
ALONE = """
import hashlib, sys
import mezzotint as mz
for number in range(int(sys.argv[1]), int(sys.argv[2])):
    request = mz.GenerationRequest(
        prompt="a red apple", seed=number, num_inference_steps=4, model="plate"
    )
    print(hashlib.sha256(mz.generate(request).images[0].data).hexdigest())
"""


def section() -> str:
    text = PAGE.read_text()
    return text[text.index("## From one machine to three") : text.index("## What goes where")]


def commands() -> list[str]:
    """The commands of the section, as they stand there."""
    blocks = re.findall(r"^```console\n(.*?)^```", section(), re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def config() -> str:
    """The configuration of the section, for machines of one core without a GPU."""
    text = re.search(r"^```toml\n(.*?)^```", section(), re.MULTILINE | re.DOTALL)[1]
    for name, value in (("min_replicas", 3), ("cpus", 1), ("gpus", 0)):
        text, count = re.subn(rf"^{name} = \d+", f"{name} = {value}", text, flags=re.MULTILINE)
        assert count == 1, name
    return text


def ask(machine: Machine, first: int, last: int, program: str = ASK) -> list[str]:
    (machine.home / "ask.py").write_text(textwrap.dedent(program))
    return machine.run(f"{sys.executable} ask.py {first} {last}", timeout_s=600).split()


def status(machine: Machine) -> dict:
    said = machine.run("mezzotint cluster status --json")
    return json.loads(said[said.index("{") :])


def ready(machine: Machine) -> list[str]:
    return [r["host"] for r in status(machine)["replicas"] if r["status"] == "ready"]


def wait(done, what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < until, what
        time.sleep(1.0)


def serve(machine: Machine, command: str) -> "subprocess.Popen[str]":
    (machine.home / "config.toml").write_text(config())
    with (machine.home / "log").open("w") as log:
        served = machine.start(command, stdout=log, stderr=subprocess.STDOUT)
    probe = "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health/ready')"
    alive = f'{sys.executable} -c "{probe}"'
    wait(
        lambda: machine.start(alive, stderr=subprocess.DEVNULL).wait() == 0,
        f"not ready: {(machine.home / 'log').read_text()[-3000:]}",
    )
    return served


def test_the_page_takes_a_user_from_one_machine_to_three(tmp_path):
    install, up, copy, join, server, watch = commands()
    assert install.startswith("pip install")
    assert watch == "mezzotint cluster status --watch"
    with machines(tmp_path, "10.0.0.1", "10.0.0.2", "10.0.0.3") as (first, second, third):
        alone = ask(first, 0, 6, ALONE)
        said = first.run(up)
        assert f"join        {join}" in said
        for machine in (second, third):
            (machine.home / ".ray").mkdir()
            (machine.home / ".ray" / "auth_token").write_text(
                "not the cluster's token, but as long"
            )
            refused = machine.run("mezzotint cluster status --address 10.0.0.1:6379", code=1)
            assert "token" in refused
            machine.run(copy)
            machine.run(join)
        serve(first, server)
        wait(lambda: len(ready(first)) == 3, str(status(first)))
        assert sorted(ready(second)) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
        serve(second, server)  # a second front with the same settings, over the same replicas
        assert status(third)["fronts"] == 2
        assert ask(first, 0, 3) + ask(second, 3, 6) == alone
        third.lose()
        assert ask(second, 0, 3) + ask(first, 3, 6) == alone
        wait(lambda: "10.0.0.3" not in ready(first), "the lost machine is still used")
        hosts = {n["host"]: n["live"] for n in status(first)["nodes"]}
        assert (hosts["10.0.0.1"], hosts["10.0.0.2"]) == (True, True)
        first.run("mezzotint cluster down")
        second.run("mezzotint cluster down --ray")
        first.run("mezzotint cluster down --ray")
        first.run("mezzotint cluster status --address 10.0.0.1:6379", code=1)
