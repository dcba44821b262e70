"""Defaults of keys that a configuration lacks are those of the classes."""

import inspect

import diffusers
import pytest
import transformers

from mezzotint.models.class_defaults import (
    CLASS_DEFAULTS,
    SCHEDULER_DEFAULTS,
    with_class_defaults,
    with_scheduler_defaults,
)

SHARED = {
    "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "rescale_betas_zero_snr": False, "trained_betas": None,
}  # fmt: skip


def declared(name):
    """Return what a class of diffusers or transformers takes where nothing is said."""
    if hasattr(diffusers, name):
        return {
            key: parameter.default
            for key, parameter in inspect.signature(
                getattr(diffusers, name).__init__
            ).parameters.items()
        }
    return getattr(transformers, name).config_class().to_dict()


@pytest.mark.parametrize("name", CLASS_DEFAULTS)
def test_defaults_are_those_of_the_class(name):
    found = declared(name)
    assert {key: found[key] for key in CLASS_DEFAULTS[name]} == CLASS_DEFAULTS[name]


@pytest.mark.parametrize(
    "name", sorted(n for n in dir(diffusers) if n.endswith("Scheduler") and "Flax" not in n)
)
def test_schedulers_that_differ_from_the_shared_defaults_are_listed(name):
    known = (*SHARED, "clip_sample")
    found = {k: v for k, v in declared(name).items() if k in known}
    if "beta_start" not in found or name in ("UnCLIPScheduler", "RePaintScheduler"):
        return
    differs = {k: v for k, v in found.items() if v != SHARED.get(k, False)}
    if "DDIMInverse" in name or "CogVideoXDPM" in name:
        return  # no scheduler that can be asked for
    assert dict(SCHEDULER_DEFAULTS.get(name, {})) == differs


def test_what_is_said_stays_and_null_says_nothing():
    config = with_class_defaults("AutoencoderKL", {"scaling_factor": 0.5, "latent_channels": None})
    assert (config["scaling_factor"], config["latent_channels"]) == (0.5, 4)
    assert with_class_defaults("Unheard", {"a": 1}) == {"a": 1}


def test_only_the_first_stable_diffusion_pipelines_correct_their_schedulers():
    old = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"}
    corrected = with_scheduler_defaults(old, "StableDiffusionPipeline")
    assert (corrected["steps_offset"], corrected["clip_sample"]) == (1, False)
    kept = with_scheduler_defaults(old, "DDIMPipeline")
    assert "steps_offset" not in kept and kept["clip_sample"] is True
    assert with_scheduler_defaults({}, "StableDiffusionPipeline") == {}


def test_what_predict_epsilon_said_until_diffusers_0_8_is_understood():
    old = {"_class_name": "DDPMScheduler", "predict_epsilon": False, "tensor_format": "pt"}
    assert with_scheduler_defaults(old, "DDPMPipeline")["prediction_type"] == "sample"
