"""Classes that configurations may name are those that diffusers and transformers export."""

import json

import pytest
from torch import nn

from mezzotint.errors import CardError
from mezzotint.models.exported import exported_class, pipeline_class, refuse_own_code


def test_exported_classes_are_found_in_either_library():
    import diffusers
    import transformers

    found = exported_class("diffusers", "AutoencoderKL", where="vae", kind=nn.Module)
    assert found is diffusers.AutoencoderKL
    assert exported_class("transformers", "CLIPTextModel", where="t") is transformers.CLIPTextModel
    checker = pipeline_class("stable_diffusion", "StableDiffusionSafetyChecker", where="checker")
    assert checker.__module__ == "diffusers.pipelines.stable_diffusion.safety_checker"


@pytest.mark.parametrize(
    ("library", "name", "says"),
    [
        ("my_code", "MyModel", "only classes of diffusers and transformers"),
        ("os", "system", "only classes of diffusers and transformers"),
        ("transformers", "pipeline", "names pipeline, which this transformers"),  # a function
        ("diffusers", "utils", "names utils, which this diffusers"),  # a module
        ("diffusers", "__class__", "names __class__, which"),
        ("transformers", "models.clip", "which this transformers"),
        ("transformers", "Nothing\nof the kind", "which this transformers"),
        ("transformers", ["modeling", "MyModel"], "code inside a model folder never runs"),
        ("transformers", None, "names None, which"),
        ("transformers", "AutoModel", "transformers's AutoModel, which is no Module"),
        ("diffusers", "DDIMScheduler", "diffusers's DDIMScheduler, which is no Module"),
    ],
)
def test_any_other_name_is_refused_with_one_line(library, name, says):
    with pytest.raises(CardError, match=says) as caught:
        exported_class(library, name, where="unet", kind=nn.Module)
    assert "\n" not in str(caught.value)


def test_a_class_that_others_put_there_is_not_exported(monkeypatch):
    import diffusers

    monkeypatch.setattr(diffusers, "Planted", type("Planted", (nn.Module,), {}), raising=False)
    with pytest.raises(CardError, match="names Planted, which this diffusers"):
        exported_class("diffusers", "Planted", where="unet")


@pytest.mark.parametrize(
    ("module", "name"),
    [("stable_diffusion", "os"), ("DiffusionPipeline", "from_pretrained"), ("my_code", "A")],
)
def test_modules_of_pipelines_give_their_classes_alone(module, name):
    with pytest.raises(CardError, match="code inside a model folder never runs"):
        pipeline_class(module, name, where="checker")


def test_code_of_its_own_is_named_by_file(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    refuse_own_code(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {}}))
    with pytest.raises(CardError, match=r"tokenizer_config\.json wants code of its own"):
        refuse_own_code(tmp_path)
