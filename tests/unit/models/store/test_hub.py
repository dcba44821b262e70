import pytest
from tests import tiny

from mezzotint.models.config import ModelsConfig
from mezzotint.models.store.hub import cached_snapshot, files_that_load
from mezzotint.models.store.store import ModelStore

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "requires_safety_checker": True,
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "image_encoder": [None, None],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
}
FILES = [
    "model_index.json", "README.md", "v1-5-pruned.safetensors", "v1-5-pruned-emaonly.ckpt",
    "safety_checker/config.json", "safety_checker/model.safetensors",
    "scheduler/scheduler_config.json", "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors", "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin", "tokenizer/merges.txt", "tokenizer/vocab.json",
    "unet/config.json", "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.json",
]  # fmt: skip
TEXTS = {
    "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
    "tokenizer/merges.txt", "tokenizer/vocab.json", "unet/config.json",
}  # fmt: skip


def test_one_precision_of_the_parts_that_load_is_fetched():
    assert set(files_that_load(FILES, INDEX)) == TEXTS | {
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
    }
    assert set(files_that_load(FILES, INDEX, "fp16")) == TEXTS | {
        "text_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    }


def test_a_part_in_one_precision_alone_is_fetched_in_it():
    names = [n for n in FILES if n != "text_encoder/model.safetensors"]
    assert "text_encoder/model.fp16.safetensors" in files_that_load(names, INDEX)


def test_a_gguf_file_is_fetched_where_a_part_has_nothing_else():
    unet = [n for n in FILES if not n.startswith("unet/diff")]
    assert "unet/model-Q4_0.gguf" in files_that_load([*unet, "unet/model-Q4_0.gguf"], INDEX)
    assert "unet/x.gguf" not in files_that_load([*FILES, "unet/x.gguf"], INDEX)
    several = [*unet, "unet/a.gguf", "unet/b.gguf"]
    assert not {"unet/a.gguf", "unet/b.gguf"} & set(files_that_load(several, INDEX))


@pytest.mark.parametrize("has_ref", [True, False])
def test_a_repositorys_folder_in_the_hubs_cache_is_the_model_inside(tmp_path, has_ref):
    repository = tmp_path / "models--owner--name"
    commit = "0" * 40
    (repository / "snapshots").mkdir(parents=True)
    tiny.copy_of("ddpm", repository / "snapshots" / commit)
    if has_ref:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
    assert cached_snapshot(repository) == repository / "snapshots" / commit
    assert cached_snapshot(tmp_path) is None
    store = ModelStore(ModelsConfig(home=str(tmp_path / "home")))
    assert store.spec(str(repository)).family == "unconditional"
    assert store.add("mine", repository).path == repository / "snapshots" / commit
