import warnings

import diffusers
import pytest

from mezzotint.planning.schedulers import (
    calls_after,
    evaluation_steps,
    fitting_schedulers,
    scheduler_names,
    scheduler_notes,
)
from mezzotint.schedulers import DIFFUSERS, NATIVE, UNFIT, native_twin


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DIFFUSERS)
@pytest.mark.parametrize("steps", [4, 10, 31])
def test_evaluations_equal_the_length_of_diffusers_own_timesteps(name, steps):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(diffusers, name)()
        scheduler.set_timesteps(steps)
    assert len(evaluation_steps(name, steps)) == len(scheduler.timesteps)


def test_pndm_without_runge_kutta_calls_its_second_step_twice():
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=True)
    scheduler.set_timesteps(30)
    mine = evaluation_steps("PNDMScheduler", 30, {"skip_prk_steps": True})
    assert len(mine) == len(scheduler.timesteps) == 31


@pytest.mark.parametrize("strength", [1.0, 0.9, 0.5, 0.1])
def test_plms_leaves_out_as_many_calls_for_a_start_picture_as_its_class_does(strength):
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=True)
    scheduler.set_timesteps(10)
    skipped = 10 - int(10 * strength)
    steps = calls_after("plms", 10, skipped)
    assert len(steps) == len(scheduler.timesteps[skipped * scheduler.order :])
    assert set(steps) == set(range(1, 11 - skipped))


def test_what_a_scheduler_does_otherwise_is_said():
    assert scheduler_notes("plms", None, 20, {}) == []
    assert scheduler_notes("plms", "trailing", 20, {}) == []
    (note,) = scheduler_notes("ddim", "karras", 20, {})
    assert "sigma_schedule karras has no effect on ddim" in note
    assert scheduler_notes("PNDMScheduler", None, 3, {"skip_prk_steps": True}) == []
    (note,) = scheduler_notes("PNDMScheduler", None, 3, {})
    assert "at least 4 steps, got 3" in note


@pytest.mark.parametrize("name", NATIVE.builtin)
def test_every_step_is_evaluated_in_order(name):
    steps = evaluation_steps(name, 7)
    assert sorted(steps) == list(steps)
    assert set(steps) == set(range(1, 8))


def test_every_native_scheduler_has_a_rule_and_equals_a_class():
    from mezzotint.sampling.rules import RULES

    assert set(NATIVE.builtin) == set(RULES)
    assert all(NATIVE[name].equals in DIFFUSERS for name in NATIVE.builtin)


def test_what_fits_is_told_by_the_frame():
    assert {"flow_euler", "UniPCMultistepScheduler"} <= set(fitting_schedulers("flow"))
    assert not {"euler", "DDIMScheduler"} & set(fitting_schedulers("flow"))
    assert {"euler", "UniPCMultistepScheduler"} <= set(fitting_schedulers("epsilon"))
    assert "flow_euler" not in fitting_schedulers("epsilon")


def test_every_class_of_the_table_is_one_that_diffusers_exports():
    named = (*DIFFUSERS, *UNFIT)
    assert [name for name in named if not hasattr(diffusers, name)] == []
    assert not set(DIFFUSERS) & set(UNFIT)


@pytest.mark.parametrize(
    ("config", "twin"),
    [
        ({}, "dpmpp_2m"),
        ({"algorithm_type": "sde-dpmsolver++"}, "dpmpp_sde"),
        ({"algorithm_type": "dpmsolver"}, None),
        ({"solver_order": 3}, None),
        ({"solver_type": "heun"}, None),
        ({"use_flow_sigmas": True}, None),
    ],
)
def test_a_configured_class_has_a_native_twin_only_where_it_is_the_same(config, twin):
    assert native_twin("DPMSolverMultistepScheduler", config) == twin


def test_names_are_sorted_and_unique():
    assert list(scheduler_names()) == sorted(set(scheduler_names()))
