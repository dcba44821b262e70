"""``mezzotint.models.class_defaults`` on what Stable Diffusion 1.4 to XL were published with."""

import json

import pytest
from tests import tiny

from mezzotint.models.formats.folders import load_pipeline
from mezzotint.sampling.schedules import noise_schedule

SD1_VAE = {"_class_name": "AutoencoderKL", "_diffusers_version": "0.2.2", "sample_size": 512}
SD2_VAE = {"_class_name": "AutoencoderKL", "_diffusers_version": "0.10.0.dev0", "sample_size": 768}
XL_VAE = {"_diffusers_version": "0.20.0.dev0", "scaling_factor": 0.13025, "force_upcast": True}
SD1_PNDM = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.7.0.dev0", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
    "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
    "clip_sample": False,
}  # fmt: skip
FIRST_DDIM = {  # of diffusers 0.2: names that no class takes any more, and none of today's
    "_class_name": "DDIMScheduler", "_diffusers_version": "0.2.2", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
    "timestep_values": None, "trained_betas": None, "tensor_format": "pt",
}  # fmt: skip
SD2_DDIM = {**FIRST_DDIM, "_diffusers_version": "0.8.0", "prediction_type": "v_prediction",
            "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}  # fmt: skip
XL_EULER = {
    "_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "clip_sample": False, "interpolation_type": "linear", "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": False,
    "skip_prk_steps": True, "steps_offset": 1, "timestep_spacing": "leading",
    "trained_betas": None, "use_karras_sigmas": False,
}  # fmt: skip
LATER = (
    "scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast",
    "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention",
)  # fmt: skip


@pytest.mark.parametrize(
    ("family", "vae", "scheduler", "factor", "prediction", "native"),
    [
        ("sd1", SD1_VAE, SD1_PNDM, 0.18215, "epsilon", "plms"),
        ("sd1", SD1_VAE, FIRST_DDIM, 0.18215, "epsilon", "ddim"),
        ("sd2", SD2_VAE, SD2_DDIM, 0.18215, "v_prediction", "ddim"),
        ("sdxl", XL_VAE, XL_EULER, 0.13025, "epsilon", "euler"),
    ],
)
def test_published_configurations_mean_what_they_meant(
    tmp_path, family, vae, scheduler, factor, prediction, native
):
    folder = tiny.copy_of(family, tmp_path / family)
    file = folder / "vae" / "config.json"
    kept = {k: v for k, v in json.loads(file.read_text()).items() if k not in LATER}
    file.write_text(json.dumps({**kept, **vae}))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = folder / "model_index.json"
    entries = json.loads(index.read_text())
    entries |= {
        "_diffusers_version": "0.2.2",
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
    }
    index.write_text(json.dumps(entries))
    model = load_pipeline(folder)
    assert model._autoencoder._factor == factor
    assert model.spec.prediction_type == prediction
    assert model.spec.default_scheduler == native
    assert model.spec.scheduler_config["steps_offset"] == 1
    assert not model.spec.scheduler_config["clip_sample"]
    schedule = noise_schedule(model.spec.scheduler_config)
    assert schedule.sigmas[-1] == pytest.approx(14.6146, abs=1e-3)


def test_the_size_that_u_nets_of_before_0_9_name_is_corrected_as_diffusers_does(tmp_path):
    folder = tiny.copy_of("sd1", tmp_path / "sd1")
    file = folder / "unet" / "config.json"
    config = json.loads(file.read_text())
    for version, side in (("0.6.0.dev0", 64), ("0.9.0", 32), ("0.42.1", 32)):
        file.write_text(json.dumps({**config, "sample_size": 32, "_diffusers_version": version}))
        assert load_pipeline(folder).spec.default_size == (side * 4, side * 4)
    file.write_text(json.dumps({k: v for k, v in config.items() if k != "sample_size"}))
    assert load_pipeline(folder).spec.default_size == (64 * 4, 64 * 4)
