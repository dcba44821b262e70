import pytest

from mezzotint.errors import nearest_name

MODELS = ("plate", "plate-gan", "plate-quick")


@pytest.mark.parametrize(
    ("name", "known", "nearest"),
    [
        ("plat", MODELS, "plate"),
        ("Plait", MODELS, "plate"),
        ("sed", ("seed", "steps"), "seed"),
        ("negative", ("negative_prompt", "prompt"), "negative_prompt"),
        ("gates.nsfw.treshold", ("threshold", "on_error"), "threshold"),
        ("serve.prot", ("serve.port", "serve.host"), "serve.port"),
        ("steps", ("num_inference_steps", "scheduler"), "num_inference_steps"),
        ("cfg_scale", ("guidance_scale", "seed"), "guidance_scale"),
        ("steps", MODELS, None),
        ("large", MODELS, None),
        ("banana", MODELS, None),
        ("sd15", MODELS, None),
        ("", MODELS, None),
        ("x" * 1000, MODELS, None),
    ],
)
def test_only_a_slip_or_a_beginning_is_guessed(name, known, nearest):
    assert nearest_name(name, known) == nearest
