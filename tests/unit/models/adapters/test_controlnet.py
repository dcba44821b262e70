"""ControlNets: residual shapes, and rows that do not know each other."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from tests import adapters_tiny, tiny

from mezzotint.errors import CardError, WeightsError
from mezzotint.models.adapters.control_kinds import residual_shapes
from mezzotint.models.adapters.controlnet import read_controlnet, with_controlnets
from mezzotint.models.adapters.ip_adapter_files import find_ip_adapter
from mezzotint.models.formats.components import from_pipeline
from mezzotint.models.networks import Placement
from mezzotint.types import Size


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"layers_per_block": 2},
        {
            "block_out_channels": (16, 32, 32, 64), "layers_per_block": 2,
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        },
    ],
)  # fmt: skip
def test_residual_shapes_are_those_the_network_answers(config):
    unet = tiny.unet(**config)
    assert isinstance(unet, UNet2DConditionModel)
    net = adapters_tiny.ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=(4, 8, 8)
    )
    for rows, columns in ((16, 24), (9, 7)):
        sample = torch.zeros(1, 4, rows, columns)
        picture = torch.zeros(1, 3, 4 * rows, 4 * columns)
        downs, middle = net(
            sample, 5, torch.zeros(1, 6, 32), controlnet_cond=picture, return_dict=False
        )
        found = [tuple(t.shape[1:]) for t in (*downs, middle)]
        assert found == list(residual_shapes(unet.config, rows, columns))


def test_the_model_without_the_view_answers_as_before(tmp_path):
    pipeline = tiny.build("sd1")
    adapters_tiny.controlnet(pipeline).save_pretrained(tmp_path / "net")
    model = from_pipeline(pipeline, name="sd")
    net = read_controlnet(tmp_path / "net", name="net", placement=Placement())
    view = with_controlnets(model, [net])
    rows = {
        "sample": torch.randn(3, 4, 16, 16), "timestep": torch.tensor([900.0, 500.0, 20.0]),
        "encoder_hidden_states": torch.randn(3, 7, 32),
    }  # fmt: skip
    (before,) = model.networks["denoiser"](**rows)
    scales = torch.tensor([[0.0], [0.8], [0.3]])
    pictures = {"control_scales": scales, "control_image_00": torch.rand(3, 3, 64, 64)}
    (steered,) = view.networks["denoiser"](**rows, **pictures)
    (after,) = model.networks["denoiser"](**rows)
    assert torch.equal(before, after)
    assert torch.equal(steered[0], before[0])
    assert (steered[1] - before[1]).abs().max() > 0.01
    assert (steered[2] - before[2]).abs().max() > 0.01


def test_other_networks_and_empty_folders_are_no_controlnet(tmp_path):
    tiny.build("sd1").unet.save_pretrained(tmp_path / "unet")
    with pytest.raises(CardError, match="must hold a ControlNetModel, it holds a UNet2DCond"):
        read_controlnet(tmp_path / "unet", name="unet", placement=Placement())
    (tmp_path / "empty").mkdir()
    with pytest.raises(CardError, match=r"config\.json"):
        read_controlnet(tmp_path / "empty", name="empty", placement=Placement())


def test_an_ip_adapter_needs_its_encoder(tmp_path):
    folder = adapters_tiny.ip_adapter(tiny.build("sd1"), tmp_path / "style")
    (folder / "image_encoder" / "config.json").unlink()
    with pytest.raises(WeightsError, match="needs its CLIP vision encoder"):
        find_ip_adapter(folder, "style")


@pytest.mark.parametrize(
    "names",
    [
        ("image_proj.proj.0.weight", "image_proj.norm.weight"),
        ("image_proj.proj.0.weight", "image_proj.perceiver_resampler.proj_in.weight"),
    ],
)
def test_a_face_id_is_refused_with_the_reason(tmp_path, names):
    state = {name: torch.zeros(4, 4) for name in (*names, "ip_adapter.1.to_k_ip.weight")}
    save_file(state, tmp_path / "faceid.safetensors")
    with pytest.raises(WeightsError, match="ArcFace, is published as ONNX alone") as caught:
        find_ip_adapter(tmp_path / "faceid.safetensors", "faceid")
    assert "\n" not in str(caught.value)


def test_a_controlnet_that_repaints_is_refused(tmp_path):
    pipeline = tiny.build("sd3")
    net = adapters_tiny.transformer_controlnet(pipeline, extra_conditioning_channels=1)
    net.save_pretrained(tmp_path)
    with pytest.raises(CardError, match="repaints: it reads 1 channels more than a picture"):
        read_controlnet(tmp_path, name="paint", placement=Placement())


def test_a_controlnet_of_sd3_that_says_nothing_of_the_shift_is_read_as_its_class_means(tmp_path):
    pipeline = tiny.build("sd3")
    adapters_tiny.transformer_controlnet(pipeline).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("force_zeros_for_pooled_projection", "use_pos_embed"):  # the first have neither
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    control = read_controlnet(tmp_path, name="first", placement=Placement())
    model = from_pipeline(pipeline, name="sd3")
    picture = torch.rand((1, 3, 48, 64), generator=torch.Generator().manual_seed(0))
    found = control.kind.encode(control.config, model, picture, Size(64, 48))
    with torch.no_grad():
        mean = pipeline.vae.encode(picture * 2 - 1).latent_dist.mean
    assert pipeline.vae.config.shift_factor
    assert torch.allclose(found, mean * pipeline.vae.config.scaling_factor, atol=1e-5)
