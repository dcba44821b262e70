"""Vocabulary: the names that other tools give to our schedulers.

One table for every door and reader. Our ``scheduler`` is what A1111 calls a
sampler; our ``sigma_schedule`` is what A1111 calls a schedule type. A name that
we do not have is answered with the nearest one and marked as not exact, so that
whoever asked can be told.

Source: the sampler and schedule lists of A1111 1.10, ComfyUI, InvokeAI 6 and
Fooocus, as their metadata spells them.
"""

from typing import Literal, NamedTuple

__all__ = [
    "A1111_SAMPLERS",
    "A1111_SCHEDULES",
    "SchedulerMatch",
    "a1111_sampler",
    "a1111_schedule",
    "match_sampler",
    "match_schedule",
    "match_upscaler",
]


class SchedulerMatch(NamedTuple):
    """What a foreign sampler name means here.

    ``exact`` is False where the nearest thing was taken instead.
    """

    scheduler: str | None
    sigma_schedule: str | None = None
    exact: bool = True


# A1111 name, ours, exact, other tools' names for the same thing
_SAMPLERS: tuple[tuple[str, str, bool, tuple[str, ...]], ...] = (
    ("DPM++ 2M", "dpmpp_2m", True, ("k_dpmpp_2m", "dpm++_2m")),
    # elsewhere "dpmpp_sde" is the solver of two stages; ours of that name is the multistep one
    ("DPM++ SDE", "dpmpp_2s_sde", True, ("dpmpp_sde", "k_dpmpp_sde", "dpm++_sde")),
    ("DPM++ 2M SDE", "dpmpp_sde", True, ("dpmpp_2m_sde", "k_dpmpp_2m_sde", "dpm++_2m_sde")),
    ("DPM++ 2M SDE Heun", "dpmpp_sde", False, ("dpmpp_2m_sde_heun",)),
    ("DPM++ 2S a", "dpmpp_2s_ancestral", True, ("k_dpmpp_2s_a", "dpm++_2s_a")),
    ("DPM++ 3M SDE", "dpmpp_3m_sde", True, ("dpmpp_3m", "k_dpmpp_3m_sde")),
    ("Euler a", "euler_ancestral", True, ("euler_a", "k_euler_a", "k_euler_ancestral")),
    ("Euler", "euler", True, ("k_euler", "flow_euler")),
    ("LMS", "lms", True, ("k_lms",)),
    ("Heun", "heun", True, ("k_heun", "flow_heun")),
    ("DPM2", "dpm2", True, ("dpm_2", "k_dpm_2", "kdpm_2")),
    ("DPM2 a", "dpm2_ancestral", True, ("dpm_2_ancestral", "k_dpm_2_a", "kdpm_2_a")),
    ("DPM fast", "dpmpp_2m", False, ("dpm_fast", "k_dpm_fast")),
    ("DPM adaptive", "dpmpp_2m", False, ("dpm_adaptive", "k_dpm_ad")),
    ("Restart", "heun", False, ("restart",)),
    ("DDIM", "ddim", True, ()),
    ("DDIM CFG++", "ddim", False, ("ddim_cfgpp",)),
    ("PLMS", "plms", True, ("pndm",)),
    ("UniPC", "unipc", True, ("uni_pc", "uni_pc_bh2")),
    ("LCM", "lcm", True, ()),
    ("DDPM", "ddpm", True, ()),
    ("DEIS", "deis", True, ()),
    ("IPNDM", "ipndm", True, ()),
    ("RES Multistep", "res_multistep", True, ()),
    ("SA Solver", "sa_solver", True, ()),
    ("TCD", "tcd", True, ()),
)

_NEAREST = {
    "er_sde": "dpmpp_3m_sde",
    "euler_ancestral_cfg_pp": "euler_ancestral",
    "euler_cfg_pp": "euler",
    "dpmpp_2m_cfg_pp": "dpmpp_2m",
    "dpmpp_2s_ancestral_cfg_pp": "dpmpp_2s_ancestral",
    "exp_heun_2_x0": "heun",
    "exp_heun_2_x0_sde": "dpmpp_2s_sde",
    "gradient_estimation": "euler",
    "gradient_estimation_cfg_pp": "euler",
    "heunpp2": "heun",
    "ipndm_v": "ipndm",
    "res_multistep_ancestral": "euler_ancestral",
    "res_multistep_ancestral_cfg_pp": "euler_ancestral",
    "res_multistep_cfg_pp": "res_multistep",
    "sa_solver_pece": "sa_solver",
    "seeds_2": "dpmpp_2s_sde",
    "seeds_3": "dpmpp_3m_sde",
}
"""Samplers of ComfyUI that are none of ours, and what comes nearest: of the same order, with
fresh noise where they have it."""

_OF_CLASS = {
    "deismultistepscheduler": "DEIS",
    "kdpm2ancestraldiscretescheduler": "DPM2 a",
    "kdpm2discretescheduler": "DPM2",
    "lmsdiscretescheduler": "LMS",
    "pndmscheduler": "PLMS",
}
"""A1111's names of classes of diffusers that have a scheduler of ours beside them."""

# A1111 name, ours (None: the scheduler's own), exact, other tools' names
_SCHEDULES: tuple[tuple[str, str | None, bool, tuple[str, ...]], ...] = (
    ("Automatic", None, True, ("", "auto", "none", "default")),
    ("Uniform", "linear", True, ("linspace",)),
    ("Karras", "karras", True, ()),
    ("Exponential", "exponential", True, ()),
    ("Polyexponential", "exponential", True, ()),  # its rho is 1: the same curve
    ("SGM Uniform", "trailing", True, ("sgm_uniform",)),
    ("KL Optimal", "kl_optimal", True, ()),
    ("Align Your Steps", "align_your_steps", True, ("ays", "ays_sd15")),
    ("Align Your Steps SDXL", "align_your_steps_sdxl", True, ("ays_sdxl",)),
    ("Simple", "trailing", True, ()),
    ("Normal", "linear", True, ()),
    ("DDIM", "leading", True, ("ddim_uniform", "uniform_ddim")),
    ("Beta", "beta", True, ()),
    ("Linear Quadratic", "linear_quadratic", True, ()),
    ("GITS", "gits", True, ()),
)

A1111_SAMPLERS: tuple[str, ...] = tuple(row[0] for row in _SAMPLERS)
"""Sampler names that the A1111 door offers, in A1111's order."""

A1111_SCHEDULES: tuple[str, ...] = tuple(row[0] for row in _SCHEDULES)
"""Schedule types that the A1111 door offers, in A1111's order."""

_SCHEDULE_SUFFIXES = {
    " karras": "karras",
    " exponential": "exponential",
    " polyexponential": "exponential",
    "_karras": "karras",
    "_k": "karras",
}


def _index() -> dict[str, SchedulerMatch]:
    """Build the look-up of every known sampler name, in lower case."""
    found: dict[str, SchedulerMatch] = {}
    for name, ours, exact, aliases in _SAMPLERS:
        match = SchedulerMatch(ours, None, exact)
        for key in (name, *aliases, *((ours,) if exact else ())):
            found.setdefault(key.lower(), match)
    for flow in ("flow_euler", "flow_heun"):  # our own names mean themselves
        found[flow] = SchedulerMatch(flow)
    found["dpmpp_2s"] = SchedulerMatch("DPMSolverSinglestepScheduler")
    for name, ours in _NEAREST.items():
        found[name] = SchedulerMatch(ours, None, exact=False)
    return found


_BY_NAME = _index()
_SCHEDULE_BY_NAME = {
    key.lower(): (ours, exact)
    for name, ours, exact, aliases in reversed(_SCHEDULES)
    for key in (name, *((ours,) if ours and exact else ()), *aliases)
}
_SCHEDULE_BY_NAME["linear"] = ("linear", True)
for _name in ("align your steps gits", "ays_gits"):  # levels of another coefficient
    _SCHEDULE_BY_NAME[_name] = ("gits", False)


def match_sampler(name: str) -> SchedulerMatch | None:
    """Find our scheduler for a foreign sampler name.

    Reads ``Euler a``, ``k_euler_a``, ``dpmpp_2m_sde_gpu``, ``DPM++ 2M Karras``,
    ``euler_k`` and names of diffusers scheduler classes, in any case.

    Returns:
        The match, with the sigma schedule if the name holds one, or None if the
        name means nothing.

    Example:
        >>> match_sampler("DPM++ 2M Karras")
        SchedulerMatch(scheduler='dpmpp_2m', sigma_schedule='karras', exact=True)
    """
    key = name.strip().lower().removesuffix("_gpu")
    if key in _BY_NAME:
        return _BY_NAME[key]
    for suffix, schedule in _SCHEDULE_SUFFIXES.items():
        bare = key.removesuffix(suffix)
        if bare != key and bare in _BY_NAME:
            return _BY_NAME[bare]._replace(sigma_schedule=schedule)
    if name.strip().endswith("Scheduler"):
        return SchedulerMatch(name.strip())
    return None


def match_schedule(name: str) -> tuple[str | None, bool] | None:
    """Find our sigma schedule for a foreign schedule type.

    Returns:
        Our name (None: the scheduler's own) and whether it is exact; or None if
        the name means nothing.
    """
    return _SCHEDULE_BY_NAME.get(name.strip().lower())


def match_upscaler(name: str) -> Literal["latent", "lanczos", "real-esrgan"] | None:
    """Find what enlarges between two passes by A1111's name of it, or None.

    Example:
        >>> match_upscaler("Latent (nearest-exact)"), match_upscaler("R-ESRGAN 4x+")
        ('latent', 'real-esrgan')
    """
    lower = name.strip().lower()
    if lower.startswith("latent"):
        return "latent"
    if lower in ("none", "lanczos", "nearest"):
        return "lanczos"
    return "real-esrgan" if "esrgan" in lower else None


def a1111_sampler(scheduler: str) -> str:
    """Return A1111's name for a scheduler of ours, or the name itself if it has none."""
    key = scheduler.lower()
    if key in _OF_CLASS:
        return _OF_CLASS[key]
    exact = [row for row in _SAMPLERS if row[2]]
    for name, ours, _, _ in exact:  # ours first: elsewhere the same word may mean another
        if key == ours.lower():
            return name
    for name, _, _, aliases in exact:
        if key in (name.lower(), *aliases):
            return name
    return scheduler


def a1111_schedule(sigma_schedule: str | None) -> str:
    """Return A1111's schedule type for a sigma schedule of ours."""
    if sigma_schedule is None:
        return "Automatic"
    return next((name for name, ours, _, _ in _SCHEDULES if ours == sigma_schedule), sigma_schedule)


LEAST_DB = {"stable": 60.0, "turbo": 30.0}
"""How close pictures of a tier stay to ``exact``: decibels of peak to noise."""

EIGHT_BITS = {
    "int8": "int8 (torchao)",
    "float8": "float8 (torchao)",
    "int8_weights": "weights of int8 (torchao)",
    "float8_weights": "weights of float8 (torchao)",
}
"""What a recipe says of linear layers, by the placement option ``quantize``."""

FULL_PRECISION = "turbo computed in float32"
"""How the note of a model begins that is too sensitive for low precision."""
