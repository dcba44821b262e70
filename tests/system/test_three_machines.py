"""The way from one machine to three in docs/cluster.md, as it is written.

Each machine is a name space of Linux: its own address, processes, home and token; all else is as
the page has it. What a machine alone draws is the oracle.
"""

import importlib.util
import json
import re
import subprocess
import sys
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
FAKE = "mezzotint.service.fake:create_fake"
"""An engine whose pictures are made from the request alone, within moments."""
PATIENCE_S = 600.0
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


def section() -> str:
    text = PAGE.read_text()
    return text[text.index("## From one machine to three") : text.index("## What goes where")]


def commands() -> list[str]:
    """The commands of the section, as they stand there."""
    blocks = re.findall(r"^```console\n(.*?)^```", section(), re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def config(factory: str) -> str:
    """The configuration of the section, for machines of one core without a GPU."""
    text = re.search(r"^```toml\n(.*?)^```", section(), re.MULTILINE | re.DOTALL)[1]
    for name, value in (("min_replicas", 3), ("cpus", 1), ("gpus", 0)):
        text, count = re.subn(rf"^{name} = \d+", f"{name} = {value}", text, flags=re.MULTILINE)
        assert count == 1, name
    return text.replace("[worker]\n", f"[worker]\n{factory}", 1)


def alone(machine: Machine, count: int, factory: str) -> list[str]:
    """Digests of the same pictures from one server with nobody else in it, on as many cores."""
    text = f"[worker]\ncount = 1\n{factory}"
    serving = serve(machine, "taskset -c 0 mezzotint serve --config config.toml", text)
    try:
        return ask(machine, 0, count)
    finally:
        machine.run("pkill -TERM -f '[m]ezzotint serve'")
        serving.wait(PATIENCE_S)
        wait(lambda: machine.start("pgrep -f '[m]ezzotint serve'").wait() == 1, "it goes on")


def ask(machine: Machine, first: int, last: int) -> list[str]:
    (machine.home / "ask.py").write_text(ASK)
    return machine.run(f"{sys.executable} ask.py {first} {last}", timeout_s=600).split()


def status(machine: Machine) -> dict:
    said = machine.run("mezzotint cluster status --json")
    return json.loads(said[said.index("{") :])


def ready(machine: Machine) -> list[str]:
    """The machines whose replicas are used; none while the controller is started anew."""
    told = machine.start(
        "mezzotint cluster status --json", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    said, why = told.communicate(timeout=PATIENCE_S)
    if told.returncode:
        assert "the cluster's controller gave no answer" in why, why
        return []
    replicas = json.loads(said[said.index("{") :])["replicas"]
    return [r["host"] for r in replicas if r["status"] == "ready"]


def wait(done, what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < until, what
        time.sleep(1.0)


def serve(machine: Machine, command: str, text: str) -> "subprocess.Popen[str]":
    (machine.home / "config.toml").write_text(text)
    with (machine.home / "log").open("w") as log:
        served = machine.start(command, stdout=log, stderr=subprocess.STDOUT)
    probe = "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health/ready')"
    alive = f'{sys.executable} -c "{probe}"'

    def is_ready() -> bool:
        assert served.poll() is None, (machine.home / "log").read_text()[-3000:]
        return machine.start(alive, stderr=subprocess.DEVNULL).wait() == 0

    wait(is_ready, "the server is not ready")
    return served


@pytest.mark.parametrize("factory", [f"factory = {FAKE!r}\n", ""], ids=["fake", "plate"])
def test_the_page_takes_a_user_from_one_machine_to_three(tmp_path, factory):
    install, up, copy, join, server, watch = commands()
    assert install.startswith("pip install")
    assert watch == "mezzotint cluster status --watch"
    text = config(factory)
    with machines(tmp_path, "10.0.0.1", "10.0.0.2", "10.0.0.3") as (first, second, third):
        expected = alone(first, 6, factory)
        assert len(set(expected)) == 6
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
        serve(first, server, text)
        wait(lambda: len(ready(first)) == 3, str(status(first)))
        assert sorted(ready(second)) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
        serve(second, server, text)  # a second front with the same settings, over the same replicas
        assert status(third)["fronts"] == 2
        assert ask(first, 0, 3) + ask(second, 3, 6) == expected
        third.lose()
        assert ask(second, 0, 3) + ask(first, 3, 6) == expected
        wait(
            lambda: set(ready(first)) == {"10.0.0.1", "10.0.0.2"}, "the lost machine is still used"
        )
        hosts = {n["host"]: n["live"] for n in status(first)["nodes"]}
        assert (hosts["10.0.0.1"], hosts["10.0.0.2"]) == (True, True)
        first.run("mezzotint cluster down")
        second.run("mezzotint cluster down --ray")
        first.run("mezzotint cluster down --ray")
        first.run("mezzotint cluster status --address 10.0.0.1:6379", code=1)
