import diffusers
import pytest

from mezzotint.vocabulary import (
    A1111_SAMPLERS,
    A1111_SCHEDULES,
    a1111_sampler,
    a1111_schedule,
    match_sampler,
    match_schedule,
)


@pytest.mark.parametrize(
    ("name", "scheduler", "schedule", "exact"),
    [
        ("Euler a", "euler_ancestral", None, True),
        ("euler", "euler", None, True),
        ("k_euler_ancestral", "euler_ancestral", None, True),
        ("DPM++ 2M Karras", "dpmpp_2m", "karras", True),
        ("dpmpp_2m_k", "dpmpp_2m", "karras", True),
        ("dpmpp_2m_sde_gpu", "dpmpp_sde", None, True),
        ("uni_pc", "unipc", None, True),
        # the solver of two stages, as everybody but us calls it
        ("dpmpp_sde_gpu", "dpmpp_2s_sde", None, True),
        ("DPM++ SDE Karras", "dpmpp_2s_sde", "karras", True),
        ("DPM++ 2S a", "dpmpp_2s_ancestral", None, True),
        ("dpmpp_3m_sde_gpu", "dpmpp_3m_sde", None, True),
        ("LMS", "lms", None, True),
        ("dpm_2_ancestral", "dpm2_ancestral", None, True),
        ("sa_solver", "sa_solver", None, True),
        ("res_multistep", "res_multistep", None, True),
        ("tcd", "tcd", None, True),
        ("PLMS", "plms", None, True),
        ("KDPM2DiscreteScheduler", "KDPM2DiscreteScheduler", None, True),
        ("flow_euler", "flow_euler", None, True),
        ("Restart", "heun", None, False),
    ],
)
def test_foreign_names_find_our_scheduler(name, scheduler, schedule, exact):
    assert match_sampler(name) == (scheduler, schedule, exact)


def test_a_name_that_means_nothing_has_no_match():
    assert match_sampler("sparkle") is None
    assert match_schedule("sparkle") is None


def test_every_offered_name_is_matched():
    assert all(match_sampler(name) for name in A1111_SAMPLERS)
    assert all(match_schedule(name) for name in A1111_SCHEDULES)


def test_exact_names_survive_the_way_there_and_back():
    for name in A1111_SAMPLERS:
        match = match_sampler(name)
        if match.exact:
            assert a1111_sampler(match.scheduler) == name


def test_class_names_in_the_table_exist_in_diffusers():
    for name in A1111_SAMPLERS:
        scheduler = match_sampler(name).scheduler
        if scheduler.endswith("Scheduler"):
            assert hasattr(diffusers, scheduler)


def test_schedules_translate_both_ways():
    assert match_schedule("SGM Uniform") == ("trailing", True)
    assert match_schedule("Automatic") == (None, True)
    assert match_schedule("karras") == ("karras", True)
    assert a1111_schedule("karras") == "Karras"
    assert a1111_schedule("leading") == "DDIM"
    assert a1111_schedule(None) == "Automatic"


def test_schedules_that_were_published_are_exact():
    assert match_schedule("Align Your Steps") == ("align_your_steps", True)
    assert match_schedule("ays_sdxl") == ("align_your_steps_sdxl", True)
    assert match_schedule("KL Optimal") == ("kl_optimal", True)


def test_our_names_and_classes_are_told_by_a1111s():
    assert a1111_sampler("dpmpp_sde") == a1111_sampler("dpmpp_2m_sde") == "DPM++ 2M SDE"
    assert a1111_sampler("dpmpp_2s_sde") == "DPM++ SDE"
    assert a1111_sampler("LMSDiscreteScheduler") == a1111_sampler("lms") == "LMS"
