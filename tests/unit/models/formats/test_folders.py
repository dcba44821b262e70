import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny

from mezzotint.errors import CardError, InvalidRequest, WeightsError
from mezzotint.models.base import Prompt
from mezzotint.models.formats.folders import load_pipeline, native_pipeline
from mezzotint.types import Size

ALL = list(tiny.BUILDERS)


@pytest.mark.parametrize("name", ALL)
def test_spec_is_known_without_building_a_network(name):
    model = load_pipeline(tiny.folder(name), name=name)
    assert not any(network.is_built for network in model.networks.values())
    spec = model.spec
    assert spec.name == name
    assert len(spec.digest) == 64
    assert spec.path == str(tiny.folder(name))
    wanted = {
        "sd1": ("sd", "epsilon", 4, 4, 4, Size(64, 64), "plms"),
        "sd2": ("sd", "v_prediction", 4, 4, 4, Size(64, 64), "ddim"),
        "bert_sd": ("sd", "v_prediction", 8, 4, 4, Size(64, 64), "ddim"),
        "sdxl": ("sdxl", "epsilon", 4, 4, 4, Size(64, 64), "euler"),
        "sd3": ("sd3", "flow", 16, 4, 8, Size(128, 128), "flow_euler"),
        "flux": ("flux", "flow", 4, 4, 8, Size(512, 512), "flow_euler"),
        "ddpm": ("unconditional", "epsilon", 3, 1, 2, Size(32, 32), "ddpm"),
        "dit": ("dit", "epsilon", 4, 4, 8, Size(64, 64), "ddim"),
    }[name]
    assert wanted == (
        spec.family,
        spec.prediction_type,
        spec.latent_channels,
        spec.latent_scale,
        spec.size_multiple,
        spec.default_size,
        spec.default_scheduler,
    )


def test_loading_a_folder_imports_neither_diffusers_nor_transformers():
    code = (
        "import sys; from mezzotint.models.formats.folders import load_pipeline; "
        f"model = load_pipeline({str(tiny.folder('bert_sd'))!r}); "
        "heavy = [m for m in ('diffusers', 'transformers') if m in sys.modules]; "
        "assert not heavy, heavy"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_digest_changes_with_any_weight_and_any_configuration(tmp_path):
    first = load_pipeline(tiny.folder("sd1")).spec.digest
    copy = tiny.copy_of("sd1", tmp_path / "copy")
    assert load_pipeline(copy).spec.digest == first
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    next(iter(state.values())).view(-1)[0] += 1
    save_file(state, file)
    second = load_pipeline(copy).spec.digest
    assert second != first
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    assert load_pipeline(copy).spec.digest not in (first, second)


def test_truncated_weights_name_file_and_sizes(tmp_path):
    copy = tiny.copy_of("sd1", tmp_path / "copy")
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-100])
    with pytest.raises(WeightsError, match=f"expected {len(data)} bytes.*found {len(data) - 100}"):
        load_pipeline(copy)


def test_expected_digests_are_checked(tmp_path):
    name = "unet/diffusion_pytorch_model.safetensors"
    with pytest.raises(WeightsError, match=f"{name} is corrupt: expected sha256 {'0' * 64}"):
        load_pipeline(tiny.folder("sd1"), expected={name: "0" * 64})


def test_folder_with_pickles_only_is_refused(tmp_path):
    copy = tiny.copy_of("sd1", tmp_path / "copy")
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(WeightsError, match="is a pickle"):
        load_pipeline(copy)


def test_missing_and_misshapen_weights_are_named(tmp_path):
    copy = tiny.copy_of("sd1", tmp_path / "copy")
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    kept = {k: v for k, v in state.items() if k != "conv_out.bias"}
    save_file(kept, file)
    with pytest.raises(WeightsError, match=r"do not fit UNet2DConditionModel.*conv_out\.bias"):
        _ = load_pipeline(copy).networks["denoiser"].module
    save_file({**state, "conv_out.bias": torch.zeros(9)}, file)
    with pytest.raises(WeightsError, match=r"do not fit UNet2DConditionModel.*conv_out\.bias"):
        _ = load_pipeline(copy).networks["denoiser"].module


def test_missing_weight_of_a_text_encoder_is_no_random_number(tmp_path):
    copy = tiny.copy_of("sd1", tmp_path / "copy")
    file = copy / "text_encoder" / "model.safetensors"
    state = load_file(file)
    save_file({k: v for k, v in state.items() if "layers.1.mlp.fc1.bias" not in k}, file)
    with pytest.raises(WeightsError, match=r"missing_keys .*layers\.1\.mlp\.fc1\.bias"):
        load_pipeline(copy).encode([Prompt(text="a cat")])


def test_code_inside_a_folder_never_runs(tmp_path):
    copy = tiny.copy_of("sd1", tmp_path / "copy")
    index = json.loads((copy / "model_index.json").read_text())
    index["unet"] = ["my_unet", "MyUNet"]
    (copy / "model_index.json").write_text(json.dumps(index))
    (copy / "unet" / "my_unet.py").write_text("raise SystemExit('the code ran')")
    with pytest.raises(CardError, match=r"'my_unet'; only classes of diffusers and transformers"):
        load_pipeline(copy)


@pytest.mark.parametrize("named", ["AutoModel", "pipeline", "CLIPTokenizer"])
def test_a_network_is_an_exported_one_though_a_terminal_says_yes(tmp_path, monkeypatch, named):
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    copy = tiny.copy_of("sd1", tmp_path / "copy")
    index = json.loads((copy / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", named]
    (copy / "model_index.json").write_text(json.dumps(index))
    file = copy / "text_encoder" / "config.json"
    mapped = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **mapped}))
    ran = tmp_path / "ran"
    (copy / "text_encoder" / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: ...\n")
    with pytest.raises(CardError, match=f"names .*{named}, which") as caught:
        load_pipeline(copy).encode([Prompt(text="a cat")])
    assert "\n" not in str(caught.value)
    assert asked == []
    assert not ran.exists()


def test_half_weights_are_computed_in_float32_on_a_cpu(tmp_path):
    copy = tiny.copy_of("sdxl", tmp_path / "copy")
    for file in copy.rglob("*.safetensors"):
        half = {k: v.half() for k, v in load_file(file).items()}
        save_file(half, file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
        file.unlink()
    model = load_pipeline(copy)
    for role in ("denoiser", "decoder", "text_encoder", "text_encoder_2"):
        assert next(model.networks[role].module.parameters()).dtype == torch.float32
    with pytest.raises(WeightsError, match="bf16 weights missing"):
        load_pipeline(copy, variant="bf16")


def test_parts_that_do_not_fit_are_refused(tmp_path):
    copy = tiny.copy_of("sd1", tmp_path / "copy")
    source = tiny.folder("bert_sd") / "vae"
    for file in source.iterdir():
        (copy / "vae" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(WeightsError, match="unet takes 4 latent channels, vae makes 8"):
        load_pipeline(copy)
    assert not native_pipeline(copy)


def test_folders_are_recognised(tmp_path):
    assert native_pipeline(tiny.folder("flux"))
    with pytest.raises(CardError, match=r"cannot read .*model_index\.json"):
        load_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    assert not native_pipeline(tmp_path)
    with pytest.raises(CardError, match="KandinskyPipeline, which has no native family"):
        load_pipeline(tmp_path)


def test_halves_of_a_long_prompt_get_the_same_number_of_tokens():
    model = load_pipeline(tiny.folder("sdxl"))
    size = Size(64, 64)
    long = Prompt(text="a red apple, " * 30, size=size)
    pair = model.align([long, Prompt(size=size, negative=True)])
    assert [prompt.num_chunks for prompt in pair] == [2, 2]
    shapes = {conditioning.shape_key for conditioning in model.encode(pair)}
    assert shapes == {
        (
            ("encoder_hidden_states", (154, 56)),
            ("text_embeds", (24,)),
            ("time_ids", (6,)),
        )
    }


def test_cut_text_of_a_bert_model_is_noted():
    model = load_pipeline(tiny.folder("bert_sd"))
    text = "a red apple on the table " * 6
    (conditioning,) = model.encode([Prompt(text=text)])
    assert conditioning["encoder_hidden_states"].shape == (1, 32, 32)
    assert conditioning.notes[0].startswith("prompt cut at 32 tokens; not read: 'a red apple on")


def test_weights_of_one_leave_the_embedding_as_it_is_and_others_do_not():
    model = load_pipeline(tiny.folder("sd1"))

    def states(text, dialect):
        return model.encode([Prompt(text=text, dialect=dialect)])[0]["encoder_hidden_states"]

    plain = states("a red apple", "plain")
    for dialect in ("a1111", "comfyui"):
        assert torch.equal(states("a (red:1.0) apple", dialect), plain)
    empty = states("", "plain")
    weighted = states("a (red:1.5) apple", "comfyui")
    torch.testing.assert_close(weighted[:, 2], empty[:, 2] + 1.5 * (plain - empty)[:, 2])
    assert torch.equal(weighted[:, 3:], plain[:, 3:])
    scaled = plain.clone()
    scaled[:, 2] *= 1.5
    torch.testing.assert_close(
        states("a (red:1.5) apple", "a1111"), scaled * (plain.mean() / scaled.mean())
    )


@pytest.mark.parametrize("name", ALL)
def test_encoding_is_a_function_of_the_prompt_alone(name):
    model = load_pipeline(tiny.folder(name))
    label = 3 if name == "dit" else None
    prompts = [Prompt(text=text, class_label=label) for text in ("a red apple", "two blue cat", "")]
    together = model.encode(prompts)
    for prompt, one in zip(prompts, together, strict=True):
        (alone,) = model.encode([prompt])
        assert one.shape_key == alone.shape_key
        assert all(torch.equal(one[key], alone[key]) for key in one)


def test_labels_outside_the_classes_are_refused():
    model = load_pipeline(tiny.folder("dit"))
    with pytest.raises(InvalidRequest, match="class_label must be 0 to 999, got 1000"):
        model.encode([Prompt(class_label=1000)])
    with pytest.raises(InvalidRequest, match="has no classes"):
        load_pipeline(tiny.folder("sd1")).encode([Prompt(class_label=1)])


@pytest.mark.parametrize("name", ["sd1", "sd3", "flux", "ddpm"])
def test_preview_matrix_is_linear_in_channels(name):
    model = load_pipeline(tiny.folder(name))
    matrix = model.preview_matrix()
    assert matrix.shape == (model.spec.latent_channels + 1, 3)
    assert bool(torch.isfinite(matrix).all())


def test_compel_blends_a_weaker_word_with_the_text_that_lacks_it():
    model = load_pipeline(tiny.folder("sd1"))

    def states(text, dialect="compel"):
        return model.encode([Prompt(text=text, dialect=dialect)])[0]["encoder_hidden_states"]

    assert torch.equal(states("a (red)1.5 apple"), states("a (red:1.5) apple", "comfyui"))
    plain, empty = states("a red apple"), states("")
    tokens = model.text_encoders[0].tokens.split("a red apple")[0][0]
    blind = torch.ones(1, 77, dtype=torch.int64)
    blind[0, 2] = 0
    lacking = model.networks["text_encoder"](
        input_ids=torch.tensor([tokens.ids]), attention_mask=blind
    )[0]
    halved = []
    for hidden in (plain, lacking):
        hidden = hidden.clone()
        hidden[:, 2] = empty[:, 2] + 0.5 * (hidden - empty)[:, 2]
        halved.append(hidden)
    # a weight of 0.5 gives both an equal share: tan(pi / 4) is 1
    torch.testing.assert_close(states("a (red)0.5 apple"), (halved[0] + halved[1]) / 2)


def test_threads_may_share_a_model():
    model = load_pipeline(tiny.folder("sdxl"))
    prompts = [Prompt(text=f"{word} apple", size=Size(64, 64)) for word in tiny.WORDS]
    alone = [model.encode([prompt])[0]["encoder_hidden_states"] for prompt in prompts]

    def encode(k):
        return model.encode([prompts[k % len(prompts)]])[0]["encoder_hidden_states"]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(encode, range(4 * len(prompts))))
    assert all(torch.equal(t, alone[k % len(prompts)]) for k, t in enumerate(together))


@pytest.mark.parametrize("half", [False, True])
def test_weights_are_copied_from_their_file_once(tmp_path, monkeypatch, half):
    copy = tmp_path / "sd1"
    shutil.copytree(tiny.folder("sd1"), copy)
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    if half:
        weights = {name: tensor.half() for name, tensor in weights.items()}
        save_file(weights, file, {"format": "pt"})
    copies, clone = [], torch.Tensor.clone
    network = load_pipeline(copy).networks["decoder"]
    monkeypatch.setattr(
        torch.Tensor, "clone", lambda t, *a, **k: copies.append(t.shape) or clone(t, *a, **k)
    )
    module = network.module
    assert len(copies) == (0 if half else len(list(module.parameters())))
    before = {name: clone(tensor) for name, tensor in module.state_dict().items()}
    assert all(torch.equal(before[name], tensor.float()) for name, tensor in weights.items())
    file.write_bytes(bytes(file.stat().st_size))  # in place: a mapped weight would be zero now
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
