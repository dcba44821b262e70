import numpy as np
import pytest
import torch

from mezzotint.gates.safety_checker import SafetyCheckerGate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = {
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = CLIPConfig(vision_config=vision, projection_dim=16)
    checker = StableDiffusionSafetyChecker(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in checker.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        checker.concept_embeds_weights.fill_(0.48)
    path = tmp_path_factory.mktemp("checker")
    checker.save_pretrained(path / "safety_checker")
    processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor.save_pretrained(path / "feature_extractor")
    return path


def test_the_score_decides_as_the_checker_itself_does(folder):
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    gate = SafetyCheckerGate(folder)
    checker = StableDiffusionSafetyChecker.from_pretrained(folder / "safety_checker").eval()
    processor = CLIPImageProcessor.from_pretrained(folder / "feature_extractor")
    random = np.random.default_rng(0)
    scores = []
    for _ in range(6):
        pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        inputs = processor([pixels], return_tensors="pt").pixel_values
        _, flagged = checker(clip_input=inputs, images=np.zeros((1, 8, 8, 3)))
        score = gate.score(pixels).value
        scores.append(score)
        assert (score > 0) == flagged[0], scores
    assert len(set(scores)) == len(scores)
    assert {score > 0 for score in scores} == {True, False}, scores
