import warnings

import diffusers
import pytest

from mezzotint.planning.schedulers import (
    DIFFUSERS_SCHEDULERS,
    NATIVE_SCHEDULERS,
    SIGMA_SCHEDULES,
    evaluation_steps,
    fitting_schedulers,
    scheduler_names,
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DIFFUSERS_SCHEDULERS)
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


@pytest.mark.parametrize("name", NATIVE_SCHEDULERS)
def test_every_step_is_evaluated_in_order(name):
    steps = evaluation_steps(name, 7)
    assert sorted(steps) == list(steps)
    assert set(steps) == set(range(1, 8))


def test_names_are_those_that_the_solvers_have():
    from mezzotint.models.solvers import fitting_schedulers as diffusers_names
    from mezzotint.sampling.solvers import SCHEDULERS
    from mezzotint.sampling.timesteps import SIGMA_SCHEDULES as sigma_names

    assert set(NATIVE_SCHEDULERS) == set(SCHEDULERS.names())
    assert tuple(sorted(sigma_names)) == SIGMA_SCHEDULES
    for frame, kind in (("ve", "epsilon"), ("flow", "flow")):
        foreign = {n for n in fitting_schedulers(kind) if n not in NATIVE_SCHEDULERS}
        assert foreign == set(diffusers_names(frame))
        native = {n for n in fitting_schedulers(kind) if n in NATIVE_SCHEDULERS}
        assert native == {n for n in SCHEDULERS.names() if SCHEDULERS[n].info.frame == frame}


def test_names_are_sorted_and_unique():
    assert list(scheduler_names()) == sorted(set(scheduler_names()))
