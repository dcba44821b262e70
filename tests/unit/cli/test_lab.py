import json
import math

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def trials():
    from mezzotint.cli.lab import run_trials

    found = run_trials(("euler", "heun", "flow_euler"), ("karras", "linear"), [1.0], [20, 40], 32)
    return {(t.scheduler, t.sigma_schedule, t.steps): t for t in found}


@pytest.mark.parametrize(
    ("scheduler", "schedule", "order"),
    [("euler", "karras", 1), ("heun", "karras", 2), ("flow_euler", "linear", 1)],
)
def test_solvers_converge_at_their_order(trials, scheduler, schedule, order):
    coarse, fine = (trials[scheduler, schedule, steps].error for steps in (20, 40))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.35)


def test_calls_are_counted_not_steps(trials):
    assert trials["euler", "karras", 20].calls == 20
    assert trials["heun", "karras", 20].calls == 39


def test_a_solver_that_draws_noise_is_measured_by_its_law():
    from mezzotint.cli.lab import run_trials

    (trial,) = run_trials(("euler_ancestral",), ("karras",), [1.0], [40], 256)
    assert trial.measure == "law"
    assert trial.error < 0.25


def test_the_verb_prints_a_table_and_draws_a_picture(cli, tmp_path):
    done = cli("lab", "--scheduler", "euler", "--sigma-schedule", "karras", "--steps", "4,8",
               "--guidance", "1,3", "--samples", 16, "-o", "lab.png")  # fmt: skip
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if line.startswith("euler")]
    assert len(lines) == 2
    with Image.open(tmp_path / "lab.png") as picture:
        assert picture.size == (1350, 750)
        assert len(picture.getcolors(100_000)) > 3


def test_the_verb_answers_in_json(cli):
    done = cli("lab", "--scheduler", "euler", "--sigma-schedule", "karras", "--steps", "4",
               "--guidance", "1", "--samples", 16, "--json")  # fmt: skip
    (trial,) = json.loads(done.out)
    assert (trial["scheduler"], trial["calls"], trial["measure"]) == ("euler", 4, "path")
