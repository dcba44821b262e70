"""The oracle is diffusers with peft: load_lora_weights and set_adapters on the same pipeline."""

import pytest
import torch
from safetensors.torch import save_file
from tests import tiny

from mezzotint.errors import InvalidRequest, WeightsError
from mezzotint.models.adapters.lora import LORA_SCALES, read_lora, with_loras
from mezzotint.models.base import Conditioning, Prompt
from mezzotint.models.formats.folders import load_pipeline

pytestmark = pytest.mark.filterwarnings("ignore")  # peft warns of its own second adapter


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sd1")
    tiny.build("sd1").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def base(folder):
    return load_pipeline(folder)


def layers_of(model):
    unet = model.networks["denoiser"].module
    linear = [n for n, m in unet.named_modules() if n.endswith(("attn1.to_q", "attn2.to_v"))]
    conv = [n for n, m in unet.named_modules() if n.endswith("resnets.0.conv1")]
    text = model.networks["text_encoder"].module
    words = [n for n, m in text.named_modules() if n.endswith("self_attn.q_proj")]
    return unet, text, linear, conv, words


def random_lora(model, *, seed, rank=4, with_text=True, with_conv=True):
    """Random pairs by (prefix, layer), of a size that changes the picture plainly."""
    generator = torch.Generator().manual_seed(seed)
    unet, text, linear, conv, words = layers_of(model)
    pairs = {}
    chosen = [("unet", unet, n) for n in linear + (conv if with_conv else [])]
    chosen += [("text_encoder", text, n) for n in words] if with_text else []
    for prefix, module, name in chosen:
        weight = module.get_submodule(name).weight
        kernel = weight.shape[2:]
        down = torch.randn((rank, weight.shape[1], *kernel), generator=generator) * 0.2
        up = torch.randn((weight.shape[0], rank, *(1 for _ in kernel)), generator=generator) * 0.2
        pairs[prefix, name] = (down, up)
    return pairs


def peft_file(path, pairs):
    state = {}
    for (prefix, name), (down, up) in pairs.items():
        state[f"{prefix}.{name}.lora_A.weight"] = down
        state[f"{prefix}.{name}.lora_B.weight"] = up
    save_file(state, path)
    return path


def kohya_file(path, pairs, alpha):
    state = {}
    for (prefix, name), (down, up) in pairs.items():
        flat = name.replace(".", "_")
        head = {"unet": "lora_unet", "text_encoder": "lora_te"}[prefix]
        if prefix == "text_encoder" and not flat.startswith("text_model"):
            flat = "text_model_" + flat
        state[f"{head}_{flat}.lora_down.weight"] = down
        state[f"{head}_{flat}.lora_up.weight"] = up
        state[f"{head}_{flat}.alpha"] = torch.tensor(float(alpha))
    save_file(state, path)
    return path


def denoised(model, *, scales=None, text="a red apple", rows=1):
    prompt = Prompt(text=text, size=model.spec.default_size, lora_scales=scales or ())
    (conditioning,) = model.encode([prompt])
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn((1, *model.latent_shape(model.spec.default_size)), generator=generator)
    return model.denoiser(latents * 3, torch.tensor([3.0]), conditioning)


def oracle(folder, files, scales):
    """The same denoiser call on diffusers' own pipeline with the adapters set."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    for k, file in enumerate(files):
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=f"a{k}")
    pipe.set_adapters([f"a{k}" for k in range(len(files))], list(scales))
    model = load_pipeline(folder)
    ids = pipe.tokenizer(
        "a red apple",
        padding="max_length",
        max_length=pipe.tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids
    with torch.no_grad():
        hidden = pipe.text_encoder(ids)[0]
    generator = torch.Generator().manual_seed(3)
    shape = (1, *model.latent_shape(model.spec.default_size))
    latents = torch.randn(shape, generator=generator) * 3

    def network(**inputs):
        with torch.no_grad():
            return pipe.unet(
                inputs["sample"],
                inputs["timestep"],
                encoder_hidden_states=inputs["encoder_hidden_states"],
                return_dict=False,
            )

    model.use_network("denoiser", network)
    conditioning = Conditioning({"encoder_hidden_states": hidden})
    return model.denoiser(latents, torch.tensor([3.0]), conditioning)


def test_a_peft_file_changes_the_answer_as_diffusers_does(folder, base, tmp_path):
    file = peft_file(tmp_path / "a.safetensors", random_lora(base, seed=1))
    view = with_loras(base, [read_lora(file)])
    for scale in (1.0, 0.4):
        expected = oracle(folder, [file], [scale])
        found = denoised(view, scales=(scale,))
        assert torch.allclose(found, expected, atol=2e-5, rtol=1e-5)
        assert float((found - denoised(base)).abs().max()) > 0.05


def test_a_kohya_file_with_alpha_changes_the_answer_as_diffusers_does(folder, base, tmp_path):
    pairs = random_lora(base, seed=2, with_text=False)
    file = kohya_file(tmp_path / "k.safetensors", pairs, alpha=2)
    view = with_loras(base, [read_lora(file)])
    expected = oracle(folder, [file], [0.8])
    assert torch.allclose(denoised(view, scales=(0.8,)), expected, atol=2e-5, rtol=1e-5)


def test_kohya_text_layers_mean_the_same_as_in_a_peft_file(base, tmp_path):
    pairs = random_lora(base, seed=6, with_conv=False)  # rank 4
    kohya = with_loras(base, [read_lora(kohya_file(tmp_path / "k.safetensors", pairs, alpha=4))])
    peft = with_loras(base, [read_lora(peft_file(tmp_path / "p.safetensors", pairs))])
    assert torch.equal(denoised(kohya, scales=(0.8,)), denoised(peft, scales=(0.8,)))


def test_a_lora_is_worn_still_when_its_network_was_let_go(folder, base, tmp_path):
    """What OpenVINO's copy of the weights does, a moment after a new home's first request."""
    file = peft_file(tmp_path / "a.safetensors", random_lora(base, seed=1))
    model = load_pipeline(folder)
    view = with_loras(model, [read_lora(file)])
    before = denoised(view, scales=(1.0,))
    model.networks["denoiser"].let_go()
    model.networks["text_encoder"].let_go()
    assert torch.equal(denoised(view, scales=(1.0,)), before)
    assert float((denoised(model) - before).abs().max()) > 0.05


def test_two_loras_with_their_scales_add_up_as_in_diffusers(folder, base, tmp_path):
    files = [
        peft_file(tmp_path / f"{k}.safetensors", random_lora(base, seed=k, rank=k)) for k in (2, 3)
    ]
    view = with_loras(base, [read_lora(file) for file in files])
    expected = oracle(folder, files, [0.5, -0.7])
    assert torch.allclose(denoised(view, scales=(0.5, -0.7)), expected, atol=2e-5, rtol=1e-5)


def test_the_base_model_is_bitwise_the_same_before_during_and_after(folder, base, tmp_path):
    file = peft_file(tmp_path / "a.safetensors", random_lora(base, seed=1))
    before = denoised(base)
    view = with_loras(base, [read_lora(file)])
    denoised(view, scales=(1.0,))
    assert torch.equal(denoised(base), before)
    assert torch.equal(denoised(load_pipeline(folder)), before)
    assert base.spec.digest != view.spec.digest


def test_rows_with_different_scales_share_a_call_and_equal_each_alone(base, tmp_path):
    file = peft_file(tmp_path / "a.safetensors", random_lora(base, seed=4))
    view = with_loras(base, [read_lora(file)])
    size = base.spec.default_size
    scales = [(0.0,), (0.5,), (1.0,), (-1.0,)]
    prompts = [Prompt(text="a red apple", size=size, lora_scales=s) for s in scales]
    conditionings = view.encode(prompts)
    assert [float(c[LORA_SCALES][0, 0]) for c in conditionings] == [0.0, 0.5, 1.0, -1.0]
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn((4, *base.latent_shape(size)), generator=generator)
    sigma = torch.tensor([3.0, 2.0, 1.0, 0.5])
    together = view.denoiser(latents, sigma, Conditioning.stack(conditionings))
    pair = view.denoiser(latents[1:3], sigma[1:3], Conditioning.stack(conditionings[1:3]))
    assert torch.equal(pair, together[1:3])
    plain = base.denoiser(latents[:2], sigma[:2], Conditioning.stack(base.encode(prompts[:2])))
    assert torch.equal(together[0], plain[0])


def test_a_lora_for_another_architecture_is_refused_with_the_layer(base, tmp_path):
    wrong = tmp_path / "wrong.safetensors"
    save_file(
        {
            "unet.nowhere.to_q.lora_A.weight": torch.zeros(2, 32),
            "unet.nowhere.to_q.lora_B.weight": torch.zeros(32, 2),
        },
        wrong,
    )
    with pytest.raises(WeightsError, match=r"nowhere\.to_q"):
        with_loras(base, [read_lora(wrong)])
    _, _, linear, _, _ = layers_of(base)
    save_file(
        {
            f"unet.{linear[0]}.lora_A.weight": torch.zeros(2, 7),
            f"unet.{linear[0]}.lora_B.weight": torch.zeros(32, 2),
        },
        wrong,
    )
    with pytest.raises(WeightsError, match="does not fit this model: layer"):
        with_loras(base, [read_lora(wrong)])


def test_files_that_are_no_lora_are_refused(tmp_path):
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError):
        read_lora(tmp_path / "x.safetensors")
    (tmp_path / "p.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(WeightsError, match="pickle"):
        read_lora(tmp_path / "p.bin")
    with pytest.raises(WeightsError, match="exactly one"):
        (tmp_path / "empty").mkdir()
        read_lora(tmp_path / "empty")


def test_a_model_without_a_denoiser_takes_no_lora(base):
    import copy

    gan = copy.copy(base)
    gan.denoiser = None
    with pytest.raises(InvalidRequest, match="takes no LoRA"):
        with_loras(gan, [])
