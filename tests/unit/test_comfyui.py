"""What a ComfyUI graph becomes, and which node is named where it cannot."""

import copy

import pytest

from mezzotint.comfyui import NODES, GraphError, read_graph
from mezzotint.request import GenerationRequest

TEXT_TO_IMAGE = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 8566257, "steps": 20, "cfg": 8, "sampler_name": "euler", "scheduler": "normal",
            "denoise": 1, "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "plate.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"batch_size": 2, "height": 32, "width": 64}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": "a pear"}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": "bad hands"}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
}  # fmt: skip


def graph(**inputs):
    """The graph with inputs of nodes changed: ``n3={"steps": 5}``, and nodes added."""
    made = copy.deepcopy(TEXT_TO_IMAGE)
    for name, change in inputs.items():
        node = name.removeprefix("n")
        if "class_type" in change:
            made[node] = change
        else:
            made[node]["inputs"] |= change
    return made


def image_to_image(denoise):
    return graph(
        n3={"latent_image": ["11", 0], "denoise": denoise},
        n10={"class_type": "LoadImage", "inputs": {"image": "start.png"}},
        n11={"class_type": "VAEEncode", "inputs": {"pixels": ["10", 0], "vae": ["4", 2]}},
    )


def test_the_default_graph_is_a_request():
    read = read_graph(TEXT_TO_IMAGE)
    request = GenerationRequest.from_dict(read.fields)
    assert request == GenerationRequest(
        model="plate", prompt="a pear", negative_prompt="bad hands", width=64, height=32,
        num_images=2, seed=8566257, num_inference_steps=20, guidance_scale=8.0, scheduler="euler",
        sigma_schedule="linear",
    )  # fmt: skip
    assert (read.outputs, read.sampler, read.warnings) == (("9",), "3", [])


def test_image_to_image_runs_as_many_steps_as_there():
    read = read_graph(image_to_image(0.5))
    assert (read.fields["strength"], read.fields["num_inference_steps"]) == (0.5, 40)
    assert read.pictures == {"image": "start.png"}
    assert "width" not in read.fields


def test_loras_are_read_in_the_order_of_their_use_and_clip_follows_them():
    def lora(model, name):
        inputs = {"model": [model, 0], "clip": [model, 1], "lora_name": name}
        inputs |= {"strength_model": 0.5, "strength_clip": 0.5}
        return {"class_type": "LoraLoader", "inputs": inputs}

    read = read_graph(
        graph(
            n3={"model": ["b", 0]},
            n6={"clip": ["b", 1]},
            a=lora("4", "ink.safetensors"),
            b=lora("a", "oil"),
        )
    )
    assert read.fields["loras"] == [{"name": "ink", "scale": 0.5}, {"name": "oil", "scale": 0.5}]


def test_a_controlnet_holds_for_its_share_of_the_steps():
    apply = {
        "positive": ["6", 0], "negative": ["7", 0], "control_net": ["c", 0], "image": ["i", 0],
        "strength": 0.8, "start_percent": 0.1, "end_percent": 0.6,
    }  # fmt: skip
    read = read_graph(
        graph(
            n3={"positive": ["a", 0], "negative": ["a", 1]},
            a={"class_type": "ControlNetApplyAdvanced", "inputs": apply},
            c={"class_type": "ControlNetLoader", "inputs": {"control_net_name": "edges"}},
            i={"class_type": "LoadImage", "inputs": {"image": "edges.png"}},
        )
    )
    assert read.fields["controls"] == [{"model": "edges", "scale": 0.8, "start": 0.1, "end": 0.6}]
    assert read.pictures == {"controls.0": "edges.png"}
    assert (read.fields["prompt"], read.fields["negative_prompt"]) == ("a pear", "bad hands")


@pytest.mark.parametrize(
    ("said", "mode"), [("openpose", 0), ("canny/lineart/anime_lineart/mlsd", 3), ("repaint", 7)]
)
def test_a_union_of_controlnets_follows_the_type_that_is_set(said, mode):
    apply = {"conditioning": ["6", 0], "control_net": ["u", 0], "image": ["i", 0], "strength": 1}
    nodes = {
        "n3": {"positive": ["a", 0]},
        "a": {"class_type": "ControlNetApply", "inputs": apply},
        "c": {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "union"}},
        "i": {"class_type": "LoadImage", "inputs": {"image": "edges.png"}},
    }

    def read(kind):
        inputs = {"control_net": ["c", 0], "type": kind}
        return read_graph(
            graph(**nodes, u={"class_type": "SetUnionControlNetType", "inputs": inputs})
        )

    assert read(said).fields["controls"] == [{"model": "union", "scale": 1.0, "mode": mode}]
    assert "mode" not in read("auto").fields["controls"][0]
    with pytest.raises(GraphError, match="no such type: canny"):
        read("canny")


def advanced(**change):
    inputs = {
        "add_noise": "enable", "noise_seed": 5, "steps": 20, "cfg": 7.5, "sampler_name": "dpmpp_2m",
        "scheduler": "karras", "start_at_step": 0, "end_at_step": 10000,
        "return_with_leftover_noise": "disable", "model": ["4", 0], "positive": ["6", 0],
        "negative": ["7", 0], "latent_image": ["5", 0],
    }  # fmt: skip
    return {"class_type": "KSamplerAdvanced", "inputs": inputs | change}


def test_an_advanced_sampler_from_noise_to_the_end_is_a_request():
    read = read_graph(graph(n3=advanced()))
    assert (read.fields["scheduler"], read.fields["sigma_schedule"]) == ("dpmpp_2m", "karras")
    assert (read.fields["seed"], read.fields["num_inference_steps"]) == (5, 20)
    later = image_to_image(1)
    later["3"] = advanced(start_at_step=15, latent_image=["11", 0])
    assert read_graph(later).fields["strength"] == 0.25


def test_weights_in_a_prompt_are_read_as_there():
    assert read_graph(graph(n6={"text": "a (red:1.2) pear"})).fields["prompt_dialect"] == "comfyui"


def test_a_sampler_that_is_near_is_said():
    read = read_graph(graph(n3={"sampler_name": "dpmpp_2m_sde_heun_gpu"}))
    assert read.fields["scheduler"] == "dpmpp_sde"
    assert read.warnings == ["sampler dpmpp_2m_sde_heun_gpu is not offered here; dpmpp_sde is used"]


@pytest.mark.parametrize(
    ("nodes", "node", "input_", "kind"),
    [
        (graph(n3={"sampler_name": "magic"}), "3", "sampler_name", "value_not_in_list"),
        (graph(n3={"scheduler": "magic"}), "3", "scheduler", "value_not_in_list"),
        (graph(n3={"steps": "20"}), "3", "steps", "invalid_input_type"),
        (graph(n3={"steps": 0}), "3", "steps", "value_smaller_than_min"),
        (graph(n3={"seed": None}), "3", "seed", "required_input_missing"),
        (graph(n3={"model": ["4", 0, 1]}), "3", "model", "bad_linked_input"),
        (graph(n3={"model": ["99", 0]}), "3", "model", "bad_linked_input"),
        (graph(n3={"latent_image": ["5", 1]}), "3", "latent_image", "bad_linked_input"),
        (graph(n3={"latent_image": ["5", True]}), "3", "latent_image", "bad_linked_input"),
        (graph(n3={"positive": ["5", 0]}), "3", "positive", "return_type_mismatch"),
        (graph(n3={"denoise": 0.5}), "3", "latent_image", "custom_validation_failed"),
        (graph(n3=advanced(add_noise="disable")), "3", "add_noise", "value_not_in_list"),
        (graph(n3=advanced(end_at_step=10)), "3", "end_at_step", "custom_validation_failed"),
        (graph(n6={"text": ["4", 0]}), "6", "text", "invalid_input_type"),
        (graph(n6={"clip": ["s", 0]}, s={"class_type": "CLIPSetLastLayer", "inputs": {"clip": ["4", 1], "stop_at_clip_layer": -2}}),
         "s", "stop_at_clip_layer", "value_smaller_than_min"),
        (graph(n8={"vae": ["v", 0]}, v={"class_type": "VAELoader", "inputs": {"vae_name": "x"}}), "v", "", "custom_validation_failed"),
        (graph(x=TEXT_TO_IMAGE["3"]), "x", "", "custom_validation_failed"),
        (graph(n4={"class_type": "UNETLoader", "inputs": {}}), "4", "", "missing_node_type"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named_by_node_and_input(nodes, node, input_, kind):
    with pytest.raises(GraphError) as caught:
        read_graph(nodes)
    fault = caught.value.faults[0]
    assert (fault.node, fault.input, fault.kind) == (node, input_, kind)


@pytest.mark.parametrize(
    "nodes", [None, [], {}, {"1": 5}, {"1": {"class_type": "KSampler"}}, {"1": {"inputs": {}}},
              {str(k): TEXT_TO_IMAGE["4"] for k in range(501)}, {"4": TEXT_TO_IMAGE["4"]}],
)  # fmt: skip
def test_what_is_no_graph_is_refused(nodes):
    with pytest.raises(GraphError):
        read_graph(nodes)


def test_a_circle_ends():
    inputs = {"model": ["l", 0], "clip": ["l", 1], "lora_name": "x", "strength_model": 1.0}
    with pytest.raises(GraphError, match="circle"):
        read_graph(graph(n3={"model": ["l", 0]}, l={"class_type": "LoraLoader", "inputs": inputs}))


def test_every_node_without_an_output_keeps_pictures():
    assert sorted(name for name, about in NODES.items() if not about[1]) == [
        "PreviewImage",
        "SaveImage",
    ]


def masked(**mask):
    return graph(
        n3={"latent_image": ["12", 0], "denoise": 1},
        n10={"class_type": "LoadImage", "inputs": {"image": "start.png"}},
        n11={"class_type": "VAEEncode", "inputs": {"pixels": ["10", 0], "vae": ["4", 2]}},
        n12={
            "class_type": "SetLatentNoiseMask",
            "inputs": {"samples": ["11", 0], "mask": ["13", 0]},
        },
        n13={"class_type": "LoadImageMask", "inputs": {"image": "mask.png", **mask}},
    )


def test_a_latent_with_a_noise_mask_is_inpainting():
    read = read_graph(masked(channel="red"))
    assert read.pictures == {"image": "start.png", "mask": "mask.png"}
    assert (read.mask_channel, read.fields["strength"]) == ("red", 1.0)
    with pytest.raises(GraphError, match="channel must be alpha, red"):
        read_graph(masked(channel="luma"))


def test_an_encoder_for_inpainting_takes_its_mask_as_it_is():
    inputs = {"pixels": ["10", 0], "vae": ["4", 2], "mask": ["10", 1], "grow_mask_by": 6}
    nodes = masked(channel="alpha")
    nodes["12"] = {"class_type": "VAEEncodeForInpaint", "inputs": inputs}
    read = read_graph(nodes)
    assert read.pictures["mask"] == "start.png"
    assert any("grow_mask_by" in warning for warning in read.warnings)
