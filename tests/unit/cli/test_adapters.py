import json

import numpy as np
import pytest
from safetensors.numpy import save_file


def lora(path, rank=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            "unet.a.lora_A.weight": np.zeros((rank, 8), "f4"),
            "unet.a.lora_B.weight": np.zeros((8, rank), "f4"),
            "text_encoder.b.lora_A.weight": np.zeros((rank, 8), "f4"),
            "text_encoder.b.lora_B.weight": np.zeros((8, rank), "f4"),
        },
        path,
        metadata={"ss_base_model_version": "sd_v1"},
    )
    return path


def control(path, name="ControlNetModel"):
    path.mkdir()
    config = {"_class_name": name, "cross_attention_dim": 768}
    (path / "config.json").write_text(json.dumps(config))
    save_file({"w": np.zeros(4, "f4")}, path / "diffusion_pytorch_model.safetensors")
    return path


def test_a_lora_is_added_listed_shown_and_removed(cli, tmp_path):
    source = lora(tmp_path / "ink.safetensors")
    assert "no ControlNet is here; mezzotint controls add NAME PATH" in cli("controls", "list").out
    ships = [line.split()[0] for line in cli("loras", "list").out.splitlines()[1:]]
    assert ships == ["plate-ink", "plate-pastel"]
    added = cli("loras", "add", "ink", source)
    assert added.code == 0, added.err
    assert "rank 4, 2 layers of denoiser and text encoder" in added.out
    source.unlink()
    line = cli("loras", "list").out.splitlines()[1]
    assert line.split()[:4] == ["ink", "0.0", "rank", "4,"]
    shown = json.loads(cli("loras", "show", "ink", "--json").out)
    assert (shown["ranks"], shown["layers"]) == ([4], 2)
    assert shown["metadata"] == {"ss_base_model_version": "sd_v1"}
    assert len(shown["sha256"]["ink.safetensors"]) == 64
    assert cli("loras", "remove", "ink").out == "removed ink\n"
    assert cli("loras", "show", "ink").code == 2


def test_the_folder_of_a_run_is_its_lora(cli, tmp_path):
    lora(tmp_path / "runs" / "style" / "pytorch_lora_weights.safetensors")
    assert cli("loras", "add", "style", "runs/style").code == 0
    assert json.loads(cli("loras", "show", "runs/style", "--json").out)["layers"] == 2
    assert cli("loras", "add", "none", "runs").err.startswith("mezzotint: runs is no lora")


def test_a_lora_takes_the_place_of_another_where_that_is_asked(cli, tmp_path):
    small = lora(tmp_path / "a.safetensors", rank=2)
    large = lora(tmp_path / "run" / "pytorch_lora_weights.safetensors", rank=8)
    cli("loras", "add", "ink", small)
    assert cli("loras", "add", "ink", "run").code == 2
    assert cli("loras", "add", "ink", "run", "--replace").code == 0
    shown = json.loads(cli("loras", "show", "ink", "--json").out)
    assert shown["ranks"] == [8]
    assert shown["bytes"] > small.stat().st_size / 2
    save_file({"w": np.zeros(4, "f4")}, tmp_path / "odd.safetensors")
    assert "is no LoRA" in cli("loras", "add", "ink", "odd.safetensors", "--replace").err
    assert json.loads(cli("loras", "show", "ink", "--json").out)["ranks"] == [8]
    assert large.is_file()
    cli("controls", "add", "edges", control(tmp_path / "a"))
    assert cli("controls", "add", "edges", control(tmp_path / "b"), "--replace").code == 0
    assert json.loads(cli("controls", "show", "edges", "--json").out)["name"] == "edges"
    assert (tmp_path / "a" / "config.json").is_file()


def test_what_is_no_lora_is_refused_and_not_kept(cli, tmp_path):
    save_file({"w": np.zeros(4, "f4")}, tmp_path / "odd.safetensors")
    done = cli("loras", "add", "odd", "odd.safetensors")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "no layer in it is a low-rank change" in done.err
    assert "odd" not in cli("loras", "list", "--json").out
    assert cli("loras", "add", "odd", "nowhere").code == 2
    lora(tmp_path / "ink.safetensors")
    assert cli("loras", "add", "../up", "ink.safetensors").code == 2
    cli("loras", "add", "ink", "ink.safetensors")
    assert "exists already" in cli("loras", "add", "ink", "ink.safetensors").err


def test_a_controlnet_stays_where_it_is(cli, tmp_path):
    control(tmp_path / "canny")
    assert (
        "ControlNetModel, text features 768 (SD 1.x)"
        in cli("controls", "add", "edges", "canny").out
    )
    assert "edges" in cli("controls", "list").out
    assert json.loads(cli("controls", "show", "edges", "--json").out)["cross_attention_dim"] == 768
    cli("controls", "remove", "edges")
    assert (tmp_path / "canny" / "config.json").is_file()


@pytest.mark.parametrize("name", ["UNet2DModel", ""])
def test_a_folder_of_something_else_is_no_controlnet(cli, tmp_path, name):
    control(tmp_path / "unet", name)
    assert "is no ControlNet" in cli("controls", "add", "x", "unet").err
    assert json.loads(cli("controls", "list", "--json").out) == []
