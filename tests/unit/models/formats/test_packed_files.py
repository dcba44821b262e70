"""Networks from GGUF files, scaled 8-bit floats and bitsandbytes, against those who wrote them."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    GGUFQuantizationConfig,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file
from tests import tiny

import mezzotint
from mezzotint.errors import WeightsError
from mezzotint.models.backends.packed import PackedLinear, gguf_blocks
from mezzotint.models.formats import gguf_header
from mezzotint.models.formats.folders import load_pipeline
from mezzotint.models.formats.identify import identify
from mezzotint.models.formats.packed_files import plain_state
from mezzotint.models.store.loading import load_path

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

FIXTURE = Path(__file__).parent / "data" / "bitsandbytes.safetensors"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
SIZE = {"width": 64, "height": 48}


def write_gguf(path, state, kind, arch):
    """Write a state as people do: matrices that have whole blocks packed, the rest as it is."""
    writer = gguf.GGUFWriter(str(path), arch)
    block = gguf.GGML_QUANT_SIZES[kind][0]
    for name, tensor in state.items():
        values = tensor.float().numpy()
        if values.ndim == 2 and values.shape[1] % block == 0:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def packed_folder(name, target, kind=Kind.Q4_0, rename=lambda state: state):
    """A tiny pipeline's folder whose transformer is a GGUF file."""
    folder = tiny.copy_of(name, target)
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    write_gguf(folder / "transformer" / "tiny-Q4_0.gguf", rename(state), kind, name)
    return folder


def published(state):
    """Name a Z-Image's weights as its authors do."""
    named = {}
    for name, tensor in state.items():
        if ".to_q." in name:
            rows = [state[name.replace(".to_q.", f".to_{letter}.")] for letter in "qkv"]
            named[name.replace(".to_q.", ".qkv.")] = torch.cat(rows)
        elif ".to_k." not in name and ".to_v." not in name:
            for ours, theirs in (
                ("all_final_layer.2-1.", "final_layer."),
                ("all_x_embedder.2-1.", "x_embedder."),
                (".to_out.0.", ".out."),
                (".norm_q.", ".q_norm."),
                (".norm_k.", ".k_norm."),
            ):
                name = name.replace(ours, theirs)
            named[name] = tensor
    return named


def ours(folder, home, **asked):
    model = load_pipeline(folder, name="packed")
    with mezzotint.Engine([model], device="cpu", home=home, backend="torch") as engine:
        request = mezzotint.GenerationRequest(
            model="packed", prompt="a red apple", seed=3, num_inference_steps=3, **SIZE, **asked
        )
        return engine.generate(request).images[0].pixels.astype(float), model


def theirs(cls, folder, transformer, **asked):
    given = {"transformer": transformer} if transformer is not None else {}
    pipeline = cls.from_pretrained(folder, **given)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    call = {"num_inference_steps": 3, "output_type": "np", **SIZE, **asked}
    return np.round(pipeline("a red apple", generator=generator, **call).images[0] * 255)


def read_by_diffusers(cls, folder):
    return cls.from_single_file(
        str(next((folder / "transformer").glob("*.gguf"))),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        config=str(folder),
        subfolder="transformer",
        torch_dtype=torch.float32,
    )


@pytest.mark.parametrize("kind", [k for k in Kind if k.name.startswith(("Q4", "Q5", "Q8_0"))])
def test_blocks_are_spread_out_as_the_package_of_gguf_does(kind):
    if kind.name.endswith("_K"):
        rows = np.random.default_rng(0).integers(0, 255, (3, 2 * gguf.GGML_QUANT_SIZES[kind][1]))
        data = rows.astype(np.uint8)
        data[:, [1, 3, 1 + data.shape[1] // 2, 3 + data.shape[1] // 2]] &= 0x3B  # finite scales
    else:
        values = np.random.default_rng(0).standard_normal((3, 128)).astype(np.float32)
        data = gguf.quants.quantize(values, kind)
    wanted = gguf.quants.dequantize(data, kind)
    found = gguf_blocks(kind.name, torch.from_numpy(data), wanted.shape).numbers(torch.float32)
    assert np.array_equal(found.numpy(), wanted)


def test_a_gguf_file_draws_what_it_draws_in_diffusers(tmp_path):
    folder = packed_folder("flux", tmp_path / "model")
    found, model = ours(folder, tmp_path / "home", guidance_scale=3.5)
    transformer = read_by_diffusers(FluxTransformer2DModel, folder)
    wanted = theirs(FluxPipeline, folder, transformer, guidance_scale=3.5)
    assert np.abs(found - wanted).max() <= 1
    layers = dict(model.networks["denoiser"].module.named_modules())
    assert isinstance(layers["single_transformer_blocks.0.proj_mlp"], PackedLinear)
    assert any("stay Q4_0 in memory" in limit for limit in model.spec.limits)
    full = sum(t.nbytes for t in load_file(tiny.folder("flux") / WEIGHTS).values())
    assert model.networks["denoiser"].num_bytes < full / 2


def test_a_gguf_file_of_published_names_is_translated(tmp_path):
    folder = packed_folder("z_image", tmp_path / "model", Kind.Q8_0, published)
    found, _ = ours(folder, tmp_path / "home", guidance_scale=1.0)
    transformer = read_by_diffusers(ZImageTransformer2DModel, folder)
    wanted = theirs(ZImagePipeline, folder, transformer, guidance_scale=0.0)
    assert np.abs(found - wanted).max() <= 1


def test_a_packed_picture_is_the_same_in_any_company(tmp_path):
    model = load_pipeline(packed_folder("flux", tmp_path / "model"), name="packed")
    with mezzotint.Engine([model], device="cpu", home=tmp_path, backend="torch") as engine:
        asked = {"model": "packed", "num_inference_steps": 3, **SIZE}
        first = mezzotint.GenerationRequest(prompt="cat", seed=1, **asked)
        alone = engine.generate(first).images[0].pixels
        handles = [
            engine.submit(mezzotint.GenerationRequest(prompt=text, seed=seed, **asked))
            for text, seed in (("a blue leaf", 2), ("cat", 1), ("two", 3))
        ]
        assert np.array_equal(handles[1].result().images[0].pixels, alone)


def float8_state(state, *, by_row):
    """Matrices as 8-bit floats with scales as ComfyUI's files have them, and what that means."""
    packed, numbers = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, {}
    for name, tensor in state.items():
        numbers[name] = packed[name] = tensor
        if tensor.ndim == 2 and name.endswith(".weight"):
            largest = tensor.abs().amax(dim=1, keepdim=True) if by_row else tensor.abs().max()
            scale = largest.float() / 448
            packed[name] = (tensor / scale).to(torch.float8_e4m3fn)
            packed[name.replace(".weight", ".weight_scale" if by_row else ".scale_weight")] = scale
            packed[name.replace(".weight", ".scale_input")] = torch.ones(1)
            numbers[name] = packed[name].float() * scale
    return packed, numbers


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("file", ["diffusion_pytorch_model", "z_image_fp8_scaled"])
def test_8_bit_floats_with_scales_are_what_they_stand_for(tmp_path, file, by_row):
    folder = tiny.copy_of("z_image", tmp_path / "model")
    state = load_file(folder / WEIGHTS)
    state = published(state) if file.startswith("z") else state
    packed, numbers = float8_state(state, by_row=by_row)
    (folder / WEIGHTS).unlink()
    save_file(packed, folder / "transformer" / f"{file}.safetensors")
    module = load_pipeline(folder, name="packed").networks["denoiser"].module
    config = ZImageTransformer2DModel.load_config(str(folder), subfolder="transformer")
    wanted = ZImageTransformer2DModel.from_config(config)
    if file.startswith("z"):
        numbers = convert_z_image_transformer_checkpoint_to_diffusers(dict(numbers))
    wanted.load_state_dict(numbers)
    layers = dict(module.named_modules())
    for name, layer in wanted.named_modules():
        if isinstance(layer, torch.nn.Linear):
            assert isinstance(layers[name], PackedLinear)
            assert torch.equal(layers[name].weight, layer.weight)
        elif getattr(layer, "weight", None) is not None:
            assert torch.equal(layers[name].weight, layer.weight)


@pytest.mark.parametrize("packs", [True, False])
def test_a_whole_model_in_one_file_of_comfyui_is_read_for_its_transformer(tmp_path, packs):
    state = load_file(tiny.folder("z_image") / WEIGHTS)
    named = published(state) | {"norm_final.weight": torch.zeros(4)}  # of no layer
    own = float8_state(named, by_row=False)[0] if packs else named
    whole = {f"model.diffusion_model.{name}": tensor for name, tensor in own.items()}
    whole |= {
        "text_encoders.qwen3_4b.transformer.model.layers.0.mlp.up_proj.weight": torch.ones(64, 64),
        "text_encoders.qwen3_4b.transformer.model.layers.0.mlp.up_proj.scale_weight": torch.ones(1),
        "vae.decoder.conv_in.weight": torch.ones(8, 8, 3, 3),
    }
    folders = [tiny.copy_of("z_image", tmp_path / name) for name in ("whole", "plain")]
    for folder, tensors in zip(folders, (whole, own), strict=True):
        (folder / WEIGHTS).unlink()
        save_file(tensors, folder / "transformer" / "z-image-aio.safetensors")
    found, wanted = (load_pipeline(folder, name="z").networks["denoiser"] for folder in folders)
    assert found.num_bytes == wanted.num_bytes
    weights = found.module.state_dict()
    for name, weight in wanted.module.state_dict().items():
        assert torch.equal(weights[name], weight), name


def test_what_bitsandbytes_wrote_is_read_without_it():
    state = load_file(FIXTURE)  # written by bitsandbytes 0.50.2, with what it makes of it
    wanted = {k.removeprefix("wanted."): state.pop(k) for k in list(state) if "wanted." in k}
    assert set(wanted) == {"nf4", "plain_nf4", "fp4", "rows"}
    path = FIXTURE
    found = plain_state([path], torch.float32, where=path)
    for name, numbers in wanted.items():
        tolerance = 1e-6 if name == "rows" else 0  # it multiplies by 1/127
        assert torch.allclose(found[f"{name}.weight"], numbers, rtol=tolerance, atol=0)


def in_four_bits(state):
    """Matrices as nf4, and what that means."""
    table = load_file(FIXTURE)["nf4.weight.quant_map"]
    packed, numbers = {}, {}
    for name, tensor in state.items():
        numbers[name] = packed[name] = tensor
        if tensor.ndim == 2 and name.endswith(".weight") and "embed" not in name:
            blocks = tensor.float().reshape(-1, 32)
            largest = blocks.abs().amax(dim=1)
            codes = (blocks / largest[:, None])[..., None].sub(table).abs().argmin(dim=-1)
            numbers[name] = (table[codes] * largest[:, None]).reshape(tensor.shape)
            pairs = codes.reshape(-1, 2).to(torch.uint8)
            packed[name] = (pairs[:, :1] << 4) | pairs[:, 1:]
            packed[f"{name}.absmax"], packed[f"{name}.quant_map"] = largest, table.clone()
            about = {"quant_type": "nf4", "blocksize": 32, "shape": list(tensor.shape)}
            about = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
            packed[f"{name}.quant_state.bitsandbytes__nf4"] = about
    return packed, numbers


def in_rows(state):
    """A text encoder's matrices as int8 rows, and what that means."""
    packed, numbers = {}, {}
    for name, tensor in state.items():
        numbers[name] = packed[name] = tensor
        if tensor.ndim == 2 and ("SelfAttention.q" in name or "DenseReluDense" in name):
            largest = tensor.abs().amax(dim=1)
            packed[name] = (tensor / largest[:, None] * 127).round().to(torch.int8)
            packed[name.replace(".weight", ".SCB")] = largest
            packed[name.replace(".weight", ".weight_format")] = torch.tensor(0, dtype=torch.uint8)
            numbers[name] = packed[name].float() * largest[:, None] / 127
    return packed, numbers


def bitsandbytes_folders(tmp_path):
    """A tiny FLUX with packed transformer and T5, and one with the numbers they stand for."""
    folder, plain = (tiny.copy_of("flux", tmp_path / name) for name in ("packed", "plain"))
    for role, file, pack in (
        ("transformer", "diffusion_pytorch_model.safetensors", in_four_bits),
        ("text_encoder_2", "model.safetensors", in_rows),
    ):
        packed, numbers = pack(load_file(folder / role / file))
        assert set(packed) > set(numbers)
        save_file(packed, folder / role / file, {"format": "pt"})
        save_file(numbers, plain / role / file, {"format": "pt"})
        config = json.loads((folder / role / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        (folder / role / "config.json").write_text(json.dumps(config))
    return folder, plain


def test_a_folder_of_bitsandbytes_draws_what_its_numbers_draw_in_diffusers(tmp_path):
    folder, plain = bitsandbytes_folders(tmp_path)
    found, model = ours(folder, tmp_path / "home", guidance_scale=3.5)
    wanted = theirs(FluxPipeline, plain, None, guidance_scale=3.5)
    assert np.abs(found - wanted).max() <= 1
    assert [limit for limit in model.spec.limits if "stay nf4" in limit]


def test_a_lora_acts_on_packed_weights_as_on_their_numbers(tmp_path):
    layer = "transformer.single_transformer_blocks.0.proj_mlp"
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(shape, generator=generator) for shape in ((2, 32), (128, 2)))
    file = tmp_path / "lora.safetensors"
    save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, file)
    lora = mezzotint.Lora(name=str(file))
    packed, plain = (
        ours(folder, tmp_path / "home", loras=(lora,))[0]
        for folder in bitsandbytes_folders(tmp_path)
    )
    without, _ = ours(tmp_path / "plain", tmp_path / "home")
    assert np.abs(packed - plain).max() <= 1
    assert np.abs(plain - without).max() > 3


def test_an_unknown_scale_is_refused(tmp_path):
    folder = tiny.copy_of("flux", tmp_path / "model")
    state = load_file(folder / WEIGHTS)
    packed, _ = float8_state(state, by_row=False)
    packed["proj_out.scale_weight"] = torch.ones(2, 4)
    save_file(packed, folder / WEIGHTS)
    with pytest.raises(WeightsError, match=r"proj_out\.scale_weight scales float8_e4m3fn .* row"):
        _ = load_pipeline(folder).networks["denoiser"].module


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    folder = packed_folder("flux", tmp_path / "model")
    monkeypatch.setattr(gguf_header, "find_spec", lambda _: None)
    with pytest.raises(WeightsError, match=r"tiny-Q4_0\.gguf needs .* pip install gguf"):
        load_pipeline(folder)


def test_a_cut_file_is_refused_when_it_is_read(tmp_path):
    folder = packed_folder("flux", tmp_path / "model")
    file = folder / "transformer" / "tiny-Q4_0.gguf"
    whole = file.read_bytes()
    for cut in (0, 3, 40, len(whole) // 4, len(whole) - 40):
        file.write_bytes(whole[:cut])
        with pytest.raises(WeightsError, match=r"tiny-Q4_0\.gguf is no whole GGUF file"):
            load_pipeline(folder)


def test_a_type_that_cannot_be_unpacked_is_named_with_those_that_can(tmp_path):
    folder = packed_folder("flux", tmp_path / "model", Kind.TQ2_0)
    with pytest.raises(WeightsError, match=r"weight is of type TQ2_0; read are BF16, .*Q4_0"):
        load_pipeline(folder)


def test_a_file_of_another_network_is_refused(tmp_path):
    folder = packed_folder(
        "flux", tmp_path / "model", rename=lambda _: {"a.weight": torch.ones(2, 32)}
    )
    with pytest.raises(WeightsError, match="weights are not those of a FluxTransformer2DModel"):
        _ = load_pipeline(folder).networks["denoiser"].module


def test_two_files_that_could_be_meant_are_refused(tmp_path):
    folder = tiny.copy_of("flux", tmp_path / "model")
    write_gguf(folder / "transformer" / "x.gguf", {"a": torch.ones(1, 32)}, Kind.Q8_0, "flux")
    message = r"holds both x\.gguf and diffusion_pytorch_model\.safetensors; leave the one"
    with pytest.raises(WeightsError, match=message):
        load_pipeline(folder)


def test_a_text_encoder_of_gguf_is_refused(tmp_path):
    folder = tiny.copy_of("flux", tmp_path / "model")
    (folder / "text_encoder_2" / "model.safetensors").unlink()
    (folder / "text_encoder_2" / "t5.gguf").write_bytes(b"GGUF")
    with pytest.raises(WeightsError, match=r"t5\.gguf: GGUF is read for denoisers of diffusers"):
        load_pipeline(folder)


def test_a_denoiser_alone_is_no_model(tmp_path):
    file = tmp_path / "flux1-dev-Q4_0.gguf"
    file.write_bytes(b"GGUF")
    for path in (file, tmp_path):
        with pytest.raises(WeightsError, match=r"holds a denoiser alone.*--base FOLDER takes them"):
            identify(path)


def test_a_pipeline_that_runs_whole_refuses_what_diffusers_would_not_read(tmp_path):
    folder = tiny.copy_of("flux", tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "FluxImg2ImgPipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    state, _ = float8_state(load_file(folder / WEIGHTS), by_row=False)
    save_file(state, folder / WEIGHTS)
    with pytest.raises(WeightsError, match=r"holds 8-bit weights with scales, and .* runs whole"):
        load_path(folder)
    (folder / WEIGHTS).rename(folder / "transformer" / "x.gguf")
    with pytest.raises(WeightsError, match=r"holds x\.gguf, and .* runs whole"):
        load_path(folder)
