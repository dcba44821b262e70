"""A distribution that somebody else installs adds a scheduler, a gate and a model family.

The toy distribution is a folder on the path with the metadata that an installed wheel
has. Its scheduler takes Euler's steps, so it draws Euler's picture: the oracle.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
from tests.tiny import folder

TOY = """
from mezzotint.gates.base import GateInfo, Score
from mezzotint.models.families.unconditional import PixelUNetModel
from mezzotint.sampling.rules import RULES
from mezzotint.sampling.solvers import Scheduler
from mezzotint.schedulers import SchedulerInfo

scheduler = Scheduler(info=SchedulerInfo(equals="EulerDiscreteScheduler"), rule=RULES["euler"])
family = PixelUNetModel


class Brightness:
    info = GateInfo(
        name="toy_brightness", doc="Mean level, 0 to 255.", default_threshold=0, passes_below=False
    )

    def score(self, pixels):
        return Score(float(pixels.mean()), "the mean of all levels")
"""
ENTRY_POINTS = """
[mezzotint.schedulers]
toy_euler = toy_plugin:scheduler
toy_broken = toy_plugin:nothing

[mezzotint.gates]
toy_brightness = toy_plugin:Brightness

[mezzotint.models]
ToyPipeline = toy_plugin:family
"""
CODE = """
import asyncio, json, sys
import mezzotint as mz
from mezzotint.plain import read

def request(**fields):
    return read(mz.GenerationRequest, {
        "model": sys.argv[1], "seed": 5, "num_inference_steps": 3, **fields})

def main():
    with mz.Engine([sys.argv[1]], device="cpu", backend="torch") as engine:
        draw = lambda **fields: engine.generate(request(**fields)).images[0]
        known = asyncio.run(engine.service.capabilities())
        toy, euler = draw(scheduler="toy_euler"), draw(scheduler="euler")
        gated = draw(scheduler="euler", gates={"toy_brightness": {"threshold": 1.0}})
        try:
            draw(scheduler="toy_broken")
            broken = ""
        except mz.MezzotintError as error:
            broken = f"{type(error).__name__}: {error}"
    print(json.dumps({
        "known": [known["schedulers"], known["gates"]],
        "equal": bool((toy.pixels == euler.pixels).all()),
        "recipe": str(toy.recipe),
        "levels": len(set(toy.pixels.flatten().tolist())),
        "mean": float(gated.pixels.mean()),
        "verdicts": [[v.gate, v.score, v.passed] for v in gated.attempts[-1].verdicts],
        "broken": broken,
    }))

main()
"""


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict:
    base = tmp_path_factory.mktemp("plugin")
    (base / "site" / "toy-1.0.dist-info").mkdir(parents=True)
    (base / "site" / "toy_plugin.py").write_text(TOY)
    (base / "site" / "toy-1.0.dist-info" / "METADATA").write_text("Name: toy\nVersion: 1.0\n")
    (base / "site" / "toy-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    model = base / "toy-model"
    shutil.copytree(folder("ddpm"), model)
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "_class_name": "ToyPipeline"}))
    paths = [str(base / "site"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "MEZZOTINT_HOME": str(base / "home"),
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(model)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_plugged_in_scheduler_and_gate_stand_in_capabilities(answer):
    schedulers, gates = answer["known"]
    assert "toy_euler" in schedulers
    assert "toy_brightness" in json.dumps(gates)


def test_a_plugged_in_scheduler_draws_on_a_plugged_in_family(answer):
    assert "toy_euler" in answer["recipe"]
    assert answer["equal"]
    assert answer["levels"] > 50  # a picture, not one flat level


def test_a_plugged_in_gate_measures_the_picture(answer):
    ((name, score, passed),) = answer["verdicts"]
    assert (name, passed) == ("toy_brightness", True)
    assert score == pytest.approx(answer["mean"], abs=1e-3)


def test_a_plug_in_that_cannot_be_loaded_is_named_where_it_is_asked_for(answer):
    assert answer["broken"].startswith("WorkFailed: scheduler toy_broken comes from a plug-in")
