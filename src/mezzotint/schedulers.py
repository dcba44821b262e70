"""Schedulers: every name that a request may hold, and what is known of it without a tensor.

The one table of schedulers. ``NATIVE`` are ours: their solvers are tables of coefficients
(:mod:`mezzotint.sampling.rules`), so images with different ones share an update.
``DIFFUSERS`` are the classes of diffusers that run as an object of each image's own
(:mod:`mezzotint.models.solvers`). The planner, the solvers, the readers of model folders,
the doors' lists and the reference page read what they need from here.

A plug-in adds a native scheduler through the entry-point group ``mezzotint.schedulers``:
the name of the entry point is the name in requests, and what it loads is a
:class:`mezzotint.sampling.solvers.Scheduler`.

Source: the schedulers of diffusers 0.42.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from mezzotint.registry import Registry

__all__ = [
    "DIFFUSERS",
    "NATIVE",
    "PNDM_LEAST_STEPS",
    "SIGMA_SCHEDULES",
    "UNFIT",
    "Calls",
    "DiffusersScheduler",
    "Frame",
    "SchedulerInfo",
    "diffusers_names",
    "native_twin",
]

Frame = Literal["ve", "flow"]
"""Variance-exploding or flow; see :mod:`mezzotint.sampling.denoiser`."""

Calls = Literal["one", "two", "plms", "pndm"]
"""Network calls of a step: one; two, but one in the last step; two in the first alone; or as
PNDM begins."""

PNDM_LEAST_STEPS = 4
"""Steps that PNDM's Runge-Kutta start needs; with fewer it begins as PLMS does."""

SIGMA_SCHEDULES: tuple[str, ...] = (
    "align_your_steps",
    "align_your_steps_sdxl",
    "beta",
    "exponential",
    "gits",
    "karras",
    "kl_optimal",
    "leading",
    "linear",
    "linear_quadratic",
    "trailing",
)
"""What the request field ``sigma_schedule`` may hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusersScheduler:
    """What is known of a class of diffusers.

    Args:
        name: Name of the class.
        sample: What it steps: ``ve`` and ``flow`` are our frames; ``vp_by_sigma`` and
            ``vp_by_alpha`` are variance-preserving and tell the level by sigma or by the
            cumulative alpha of a timestep.
        calls: Network calls of a step.
        clips: Whether ``clip_sample`` of its configuration clamps the clean estimate.
        thresholds: Whether ``thresholding`` does so by quantiles.
        may_end_above_zero: Whether ``final_sigmas_type`` may keep the last noise level.
    """

    name: str
    sample: Literal["ve", "vp_by_sigma", "vp_by_alpha", "flow"]
    calls: Calls = "one"
    clips: bool = False
    thresholds: bool = False
    may_end_above_zero: bool = False

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Frames of the models that it steps; by-sigma solvers know flow levels too."""
        if self.sample == "flow":
            return ("flow",)
        return ("ve", "flow") if self.sample == "vp_by_sigma" else ("ve",)


_CLASSES = (
    DiffusersScheduler(name="CogVideoXDDIMScheduler", sample="vp_by_alpha"),
    DiffusersScheduler(name="DDIMParallelScheduler", sample="vp_by_alpha"),
    DiffusersScheduler(name="DDIMScheduler", sample="vp_by_alpha", clips=True, thresholds=True),
    DiffusersScheduler(name="DDPMParallelScheduler", sample="vp_by_alpha"),
    DiffusersScheduler(name="DDPMScheduler", sample="vp_by_alpha", clips=True, thresholds=True),
    DiffusersScheduler(name="DEISMultistepScheduler", sample="vp_by_sigma", thresholds=True),
    DiffusersScheduler(
        name="DPMSolverMultistepScheduler",
        sample="vp_by_sigma",
        thresholds=True,
        may_end_above_zero=True,
    ),
    DiffusersScheduler(name="DPMSolverSinglestepScheduler", sample="vp_by_sigma"),
    DiffusersScheduler(name="EulerAncestralDiscreteScheduler", sample="ve"),
    DiffusersScheduler(name="EulerDiscreteScheduler", sample="ve", may_end_above_zero=True),
    DiffusersScheduler(name="FlowMatchEulerDiscreteScheduler", sample="flow"),
    DiffusersScheduler(name="FlowMatchHeunDiscreteScheduler", sample="flow", calls="two"),
    DiffusersScheduler(name="FlowMatchLCMScheduler", sample="flow"),
    DiffusersScheduler(name="HeunDiscreteScheduler", sample="ve", calls="two", clips=True),
    DiffusersScheduler(name="KDPM2AncestralDiscreteScheduler", sample="ve", calls="two"),
    DiffusersScheduler(name="KDPM2DiscreteScheduler", sample="ve", calls="two"),
    DiffusersScheduler(name="LCMScheduler", sample="vp_by_alpha", clips=True, thresholds=True),
    DiffusersScheduler(name="LMSDiscreteScheduler", sample="ve"),
    DiffusersScheduler(name="PNDMScheduler", sample="vp_by_alpha", calls="pndm"),
    DiffusersScheduler(name="SASolverScheduler", sample="vp_by_sigma", thresholds=True),
    DiffusersScheduler(name="TCDScheduler", sample="vp_by_alpha"),
    DiffusersScheduler(
        name="UniPCMultistepScheduler",
        sample="vp_by_sigma",
        thresholds=True,
        may_end_above_zero=True,
    ),
)

DIFFUSERS: Mapping[str, DiffusersScheduler] = {row.name: row for row in _CLASSES}
"""Classes that can be stepped image by image, by name, in order."""

UNFIT: Mapping[str, str] = {
    "CMStochasticIterativeScheduler": "it expects a consistency model",
    "CogVideoXDPMScheduler": "it steps two video latents at once",
    "EDMDPMSolverMultistepScheduler": "it expects a network with EDM preconditioning",
    "EDMEulerScheduler": "it expects a network with EDM preconditioning",
    "IPNDMScheduler": "it has noise levels of its own and timesteps below 1",
}
"""Classes that fit none of our networks, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerInfo:
    """What is known of a native scheduler.

    Args:
        equals: Name of the diffusers class with the same schedule and solver, whose
            configuration keys it reads; a plug-in names the nearest one.
        when: Settings of that class that make it this scheduler.
        spacing: Its own default of ``timestep_spacing``.
        is_twin: False where that class only lends schedule and settings: models that are
            configured with it are not stepped by this scheduler.
        rounds: Whether its timesteps are whole numbers.
        rounds_karras: Whether they are on ``karras`` levels, though not elsewhere.
        counts_ends: Whether it spaces one more timestep and leaves out the last.
        from_spaced: Whether karras and the like span the spaced levels instead
            of the whole training table.
        uses_alpha_bar: Whether it steps on training timesteps alone.
        starts_at_sigma: Whether the start noise is scaled by the first sigma
            alone (diffusers' ``init_noise_sigma`` in the variance-exploding frame).
        frame: Frame of the models that it steps.
        calls: Network calls of a step.
    """

    equals: str
    when: tuple[tuple[str, Any], ...] = ()
    spacing: str = "linspace"
    is_twin: bool = True
    rounds: bool = False
    rounds_karras: bool = False
    counts_ends: bool = False
    from_spaced: bool = True
    uses_alpha_bar: bool = False
    starts_at_sigma: bool = True
    frame: Frame = "ve"
    calls: Calls = "one"

    @property
    def twin(self) -> DiffusersScheduler:
        """The class that it equals."""
        return DIFFUSERS[self.equals]


def _multistep(equals: str, *when: tuple[str, Any], is_twin: bool = True) -> SchedulerInfo:
    """Describe a solver that keeps history over whole timesteps of the training table."""
    return SchedulerInfo(
        equals=equals,
        when=when,
        is_twin=is_twin,
        rounds=True,
        counts_ends=True,
        from_spaced=False,
        starts_at_sigma=False,
    )


def _by_timestep(equals: str) -> SchedulerInfo:
    """Describe a solver that is written in training timesteps."""
    return SchedulerInfo(
        equals=equals,
        spacing="leading",
        rounds=True,
        uses_alpha_bar=True,
        starts_at_sigma=False,
    )


def _by_sigma(equals: str, frame: Frame = "ve") -> SchedulerInfo:
    """Describe a solver that is written in noise levels."""
    return SchedulerInfo(equals=equals, frame=frame, calls=DIFFUSERS[equals].calls)


def _on_levels(calls: Calls = "one") -> SchedulerInfo:
    """Describe a solver in noise levels that no class of diffusers equals."""
    return SchedulerInfo(equals="EulerAncestralDiscreteScheduler", is_twin=False, calls=calls)


def _read_plugin(info: SchedulerInfo) -> SchedulerInfo:
    """Refuse a plug-in that equals nothing we know: its class tells what is read of models."""
    if info.equals not in DIFFUSERS:
        raise ValueError(f"equals must be one of {', '.join(DIFFUSERS)}, got {info.equals!r}")
    return info


_DPM = "DPMSolverMultistepScheduler"
_SECOND_ORDER = (("solver_order", 2), ("solver_type", "midpoint"))

NATIVE: Registry[SchedulerInfo] = Registry(
    "scheduler",
    {
        "ddim": _by_timestep("DDIMScheduler"),
        "ddpm": _by_timestep("DDPMScheduler"),
        # its class stops one level above 0, and leaves that noise in the picture
        "deis": _multistep("DEISMultistepScheduler", is_twin=False),
        "dpm2": replace(_by_sigma("KDPM2DiscreteScheduler"), rounds_karras=True),
        "dpm2_ancestral": replace(_by_sigma("KDPM2AncestralDiscreteScheduler"), rounds_karras=True),
        "dpmpp_2m": _multistep(_DPM, ("algorithm_type", "dpmsolver++"), *_SECOND_ORDER),
        # the name that it has elsewhere; models are told the older one
        "dpmpp_2m_sde": _multistep(
            _DPM, ("algorithm_type", "sde-dpmsolver++"), *_SECOND_ORDER, is_twin=False
        ),
        "dpmpp_2s_ancestral": _on_levels("two"),
        "dpmpp_2s_sde": _on_levels("two"),
        "dpmpp_3m_sde": _on_levels(),
        "dpmpp_sde": _multistep(_DPM, ("algorithm_type", "sde-dpmsolver++"), *_SECOND_ORDER),
        "euler": _by_sigma("EulerDiscreteScheduler"),
        "euler_ancestral": _by_sigma("EulerAncestralDiscreteScheduler"),
        "flow_euler": _by_sigma("FlowMatchEulerDiscreteScheduler", "flow"),
        "flow_heun": _by_sigma("FlowMatchHeunDiscreteScheduler", "flow"),
        "heun": _by_sigma("HeunDiscreteScheduler"),
        "ipndm": _on_levels(),
        "lcm": _by_timestep("LCMScheduler"),
        "lms": _by_sigma("LMSDiscreteScheduler"),
        "plms": replace(
            _by_timestep("PNDMScheduler"), when=(("skip_prk_steps", True),), calls="plms"
        ),
        "res_multistep": _on_levels(),
        "sa_solver": _multistep("SASolverScheduler", is_twin=False),
        "tcd": _by_timestep("TCDScheduler"),
        "unipc": _multistep("UniPCMultistepScheduler"),
    },
    group="mezzotint.schedulers",
    read=lambda plugin: _read_plugin(plugin.info),
)
"""Schedulers with tables of coefficients, plug-ins included, by name."""

_CLASS_DEFAULTS = {
    "algorithm_type": "dpmsolver++", "skip_prk_steps": False, "solver_order": 2,
    "solver_type": "midpoint",
}  # fmt: skip


def diffusers_names(frame: Frame) -> tuple[str, ...]:
    """Return the class names that step models of a frame, sorted."""
    return tuple(sorted(row.name for row in _CLASSES if frame in row.frames))


def native_twin(class_name: str, config: Mapping[str, Any]) -> str | None:
    """Return the native scheduler that equals a configured class, or None if there is none.

    A class of diffusion solvers that is configured for a flow (``use_flow_sigmas``) has none.

    Args:
        class_name: Name of a diffusers class.
        config: Its configuration.
    """
    if config.get("use_flow_sigmas"):
        return None
    for name in NATIVE.builtin:
        info = NATIVE[name]
        if (
            info.is_twin
            and info.equals == class_name
            and all(config.get(key, _CLASS_DEFAULTS[key]) == value for key, value in info.when)
        ):
            return name
    return None
