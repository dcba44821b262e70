import json
import os
import platform
import subprocess
import sys

import pytest

from mezzotint.models.backends import streams
from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.service.provision import environment
from mezzotint.service.provision.environment import Processor, foresee, foresee_processor

IS_FORESEEN = platform.system() == "Linux" and platform.machine() == "x86_64"
ASK = """
import json, os, sys
if {cpus}:
    os.sched_setaffinity(0, {cpus})
from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.service.provision.environment import foresee
config = ModelsConfig(home={home!r}, placement=PlacementConfig(device="cpu"))
foreseen = foresee(config, os.environ)
assert "torch" not in sys.modules
from mezzotint.service.provision.model_provider import ModelProvider, describe_environment
print(json.dumps([foreseen, describe_environment(ModelProvider(config), config.placement)]))
"""


@pytest.mark.skipif(not IS_FORESEEN, reason="nothing is foreseen on this machine")
@pytest.mark.parametrize(
    ("variables", "one_cpu"),
    [
        ({}, False),
        ({"OMP_NUM_THREADS": "1"}, False),
        ({"OMP_NUM_THREADS": "99"}, False),
        ({"OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Haswell"}, False),  # is numpy's
        ({}, True),
    ],
)
def test_what_is_foreseen_is_what_torch_says(tmp_path, variables, one_cpu):
    given = {k: v for k, v in os.environ.items() if not k.startswith(environment.DECISIVE)}
    cpus = {min(os.sched_getaffinity(0))} if one_cpu else {}
    ran = subprocess.run(
        [sys.executable, "-c", ASK.format(cpus=cpus, home=str(tmp_path))],
        capture_output=True, text=True, env={**given, **variables}, check=True,
    )  # fmt: skip
    foreseen, said = json.loads(ran.stdout)
    assert foreseen == said


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of two cores with two hardware threads each."""
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    flags = tmp_path / "cpuinfo"
    flags.write_text("processor : 0\nflags\t\t: fpu avx2 fma avx512f\n")
    monkeypatch.setattr(environment, "_CPUS", tmp_path)
    monkeypatch.setattr(environment, "_PROCESSOR", flags)
    monkeypatch.setattr(environment.platform, "system", lambda: "Linux")
    monkeypatch.setattr(environment.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    return monkeypatch


def test_cores_are_counted_and_not_their_hardware_threads(machine):
    assert foresee_processor({}) == Processor("AVX2", 2)
    assert foresee_processor({"OMP_NUM_THREADS": "1", "HOME": "/x"}) == Processor("AVX2", 1)


@pytest.mark.parametrize(
    "variables",
    [{"MKL_NUM_THREADS": "1"}, {"ATEN_CPU_CAPABILITY": "default"}, {"OMP_NUM_THREADS": "2,1"},
     {"OMP_NUM_THREADS": "0"}, {"OMP_DYNAMIC": "true"}],
)  # fmt: skip
def test_variables_that_may_change_the_answer_leave_it_open(machine, variables):
    assert foresee_processor(variables) is None


def test_a_part_of_a_core_and_another_kind_of_machine_leave_it_open(machine):
    machine.setattr(environment.os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert foresee_processor({}) is None
    machine.setattr(environment.os, "sched_getaffinity", lambda _: {0, 2})
    assert foresee_processor({}) == Processor("AVX2", 1)
    machine.setattr(environment.platform, "machine", lambda: "aarch64")
    assert foresee_processor({}) is None


def test_nothing_is_foreseen_for_a_gpu():
    assert foresee(ModelsConfig(placement=PlacementConfig(device="cuda")), {}) is None


@pytest.mark.parametrize(
    ("cores", "variables", "told"),
    [
        (1, {"OMP_NUM_THREADS": "1"}, {"streams": 1}),
        (2, {"OMP_NUM_THREADS": "1"}, {"streams": 2}),
        (8, {"OMP_NUM_THREADS": "1"}, {"streams": 2, "cores": 8}),
        (1, {}, {"streams": 1}),
    ],
)
def test_machines_on_which_openvino_has_other_cores_are_other_environments(
    monkeypatch, cores, variables, told
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    seen = {0: {0}, os.getpid(): set(range(cores))}  # of this thread, and of the first one
    monkeypatch.setattr(streams.os, "sched_getaffinity", seen.__getitem__, raising=False)
    said = environment.describe("cpu", "openvino", PlacementConfig(), Processor("AVX2", 1))
    assert {k: said[k] for k in ("streams", "cores") if k in said} == told
