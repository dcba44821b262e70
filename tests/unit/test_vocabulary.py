import diffusers
import pytest

from mezzotint.schedulers import SIGMA_SCHEDULES
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


A1111 = (  # 1.10.1, in its order
    "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE",
    "Euler a", "Euler", "LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart",
    "DDIM", "DDIM CFG++", "PLMS", "UniPC", "LCM",
)  # fmt: skip
A1111_TYPES = (
    "Automatic", "Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform",
    "KL Optimal", "Align Your Steps", "Simple", "Normal", "DDIM", "Beta",
)  # fmt: skip
COMFYUI = (  # 0.3, in its order
    "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2",
    "exp_heun_2_x0", "exp_heun_2_x0_sde", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast",
    "dpm_adaptive", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde",
    "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm",
    "lcm", "ipndm", "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp",
    "res_multistep_ancestral", "res_multistep_ancestral_cfg_pp", "gradient_estimation",
    "gradient_estimation_cfg_pp", "er_sde", "seeds_2", "seeds_3", "sa_solver", "sa_solver_pece",
    "ddim", "uni_pc", "uni_pc_bh2",
)  # fmt: skip
COMFYUI_TYPES = (
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal",
    "linear_quadratic", "kl_optimal",
)  # fmt: skip
INEXACT = {
    # they choose their own steps, go back up, or correct guidance on the way
    "dpm fast", "dpm adaptive", "dpm_fast", "dpm_adaptive", "restart", "ddim cfg++",
    "dpm++ 2m sde heun", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "heunpp2", "ipndm_v",
    "sa_solver_pece", "er_sde", "seeds_2", "seeds_3", "exp_heun_2_x0", "exp_heun_2_x0_sde",
    "gradient_estimation", "res_multistep_ancestral",
}  # fmt: skip


@pytest.mark.parametrize("name", [*A1111, *COMFYUI])
def test_every_sampler_of_both_tools_means_something_and_says_if_it_is_not_the_same(name):
    match = match_sampler(name)
    is_near = name.lower() in INEXACT or name.endswith("_cfg_pp")
    assert match.exact != is_near
    again = match_sampler(a1111_sampler(match.scheduler))
    assert again.scheduler == match.scheduler  # nothing is lost on the way back


@pytest.mark.parametrize("name", [*A1111_TYPES, *COMFYUI_TYPES])
def test_every_schedule_of_both_tools_is_one_of_ours(name):
    ours, is_exact = match_schedule(name)
    assert is_exact
    assert ours is None or ours in SIGMA_SCHEDULES
    assert match_schedule(a1111_schedule(ours)) == (ours, True)
