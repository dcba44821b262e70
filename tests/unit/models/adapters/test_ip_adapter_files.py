"""IP-Adapter files: the vision encoder beside them, alone or in a whole model."""

import pytest
import torch
from tests import tiny
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from mezzotint.models.adapters.ip_adapter_files import read_encoder, side_of

SIGHT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 48, "patch_size": 8, "projection_dim": 24,
}  # fmt: skip
READING = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "vocab_size": 40, "projection_size": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "model", "encoder"),
    [
        (CLIPConfig, CLIPModel, "CLIPVisionModelWithProjection"),
        (SiglipConfig, SiglipModel, "SiglipVisionModel"),
    ],
)
def test_the_encoder_in_a_whole_model_is_read_alone(tmp_path, config, model, encoder):
    own = {"projection_dim": 24} if model is CLIPModel else {}
    whole = tiny.stir(model(config(vision_config=SIGHT, text_config=READING, **own)), 5)
    whole.save_pretrained(tmp_path)
    part = read_encoder(tmp_path)
    assert (part.class_name, side_of(part)) == (encoder, 48)
    pixels = torch.randn((1, 3, 48, 48), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = part.build(torch.float32)(pixels, output_hidden_states=True)
        wanted = whole.vision_model(pixels, output_hidden_states=True)
        assert torch.equal(found.hidden_states[-2], wanted.hidden_states[-2])
        if model is CLIPModel:
            projected = whole.visual_projection(wanted.pooler_output)
            assert torch.allclose(found.image_embeds, projected)
