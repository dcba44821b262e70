"""The clients people already have, against a running server on the fake service."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator

import httpx
import openai
import pytest
import webuiapi
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from tests.serving import RunningServer, running_server

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("clients")
    with running_server(folder, fake={"step_s": 0.01}) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="not-needed", max_retries=0)


@pytest.fixture(scope="module")
def webui(server: RunningServer) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(host="127.0.0.1", port=server.port, sampler="Euler", steps=3)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.new("RGB", (64, 64), (200, 30, 30))


def native(server: RunningServer, **body: object) -> bytes:
    answer = httpx.post(f"{server.url}/v1/generations", json=body)
    return base64.b64decode(answer.json()["images"][0]["b64"])


def as_png(image: Image.Image, name: str = "image.png") -> tuple[str, bytes, str]:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return name, stream.getvalue(), "image/png"


class TestOpenAI:
    def test_generate_answers_as_many_pictures_as_asked_with_their_seeds(self, client, server):
        result = client.images.generate(
            model="plate",
            prompt="a red apple",
            n=2,
            size="64x64",
            output_format="png",
            extra_body={"seed": 7, "num_inference_steps": 3, "guidance_scale": 4.5},
        )
        assert [entry.seed for entry in result.data] == [7, 8]
        assert result.size == "64x64"
        assert result.output_format == "png"
        pictures = [base64.b64decode(entry.b64_json) for entry in result.data]
        assert [Image.open(io.BytesIO(p)).size for p in pictures] == [(64, 64)] * 2
        assert pictures[1] == native(
            server, prompt="a red apple", seed=8, width=64, height=64, num_inference_steps=3,
            guidance_scale=4.5,
        )  # fmt: skip

    @pytest.mark.parametrize("format_", ["jpeg", "webp"])
    def test_output_format_decides_the_encoding(self, client, format_):
        result = client.images.generate(
            model="plate", prompt="x", output_format=format_, output_compression=80
        )
        picture = Image.open(io.BytesIO(base64.b64decode(result.data[0].b64_json)))
        assert picture.format == format_.upper()

    def test_response_format_url_answers_a_url_that_can_be_fetched(self, client):
        result = client.images.generate(model="plate", prompt="x", response_format="url")
        answer = httpx.get(result.data[0].url)
        assert answer.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(answer.content)).size == (128, 128)

    def test_stream_sends_partial_images_then_the_completed_one(self, client, server):
        stream = client.images.generate(
            model="plate", prompt="x", stream=True, partial_images=2, extra_body={"seed": 3}
        )
        events = list(stream)
        assert [e.type for e in events] == [
            "image_generation.partial_image",
            "image_generation.partial_image",
            "image_generation.completed",
        ]
        assert [e.partial_image_index for e in events[:2]] == [0, 1]
        assert Image.open(io.BytesIO(base64.b64decode(events[0].b64_json))).size == (16, 16)
        assert base64.b64decode(events[2].b64_json) == native(server, prompt="x", seed=3)
        assert events[2].usage.total_tokens >= 0

    def test_edit_takes_a_picture_and_a_mask(self, client, picture):
        result = client.images.edit(
            model="plate",
            image=as_png(picture),
            mask=as_png(picture, "mask.png"),
            prompt="blue",
            n=1,
            size="64x64",
            extra_body={"seed": "11", "strength": 0.5},
        )
        assert result.data[0].seed == 11
        assert Image.open(io.BytesIO(base64.b64decode(result.data[0].b64_json))).size == (64, 64)

    def test_edit_streams_edit_events(self, client, picture):
        events = list(
            client.images.edit(
                model="plate", image=[as_png(picture)], prompt="blue", stream=True, partial_images=1
            )
        )
        assert [e.type for e in events] == ["image_edit.partial_image", "image_edit.completed"]

    def test_create_variation_answers_pictures(self, client, picture):
        result = client.images.create_variation(
            model="plate", image=as_png(picture), n=2, response_format="b64_json", size="256x256"
        )
        assert len(result.data) == 2

    def test_models_lists_and_retrieves(self, client):
        assert [m.id for m in client.models.list()] == ["plate", "plate-gan"]
        assert client.models.retrieve("plate").owned_by == "mezzotint"

    def test_errors_are_typed_and_name_the_parameter(self, client):
        with pytest.raises(openai.NotFoundError) as missing:
            client.images.generate(model="dall-e-9", prompt="x")
        assert missing.value.code == "model_not_found"
        assert missing.value.param == "model"
        with pytest.raises(openai.UnprocessableEntityError) as wrong:
            client.images.generate(model="plate", prompt="x", size="65x64")
        assert wrong.value.param == "size"
        with pytest.raises(openai.UnprocessableEntityError) as unknown:
            client.images.generate(model="plate", prompt="x", extra_body={"guidance_scal": 3})
        assert "guidance_scale" in unknown.value.message


class TestHuggingFace:
    def inference(self, server: RunningServer, model: str = "plate") -> InferenceClient:
        return InferenceClient(model=f"{server.url}/hf/{model}", token="unused")

    def test_text_to_image_answers_the_native_picture(self, server):
        image = self.inference(server).text_to_image(
            "a red apple",
            negative_prompt="blurry",
            seed=5,
            width=64,
            height=64,
            num_inference_steps=3,
            guidance_scale=4.0,
            scheduler="ddim",
        )
        expected = native(
            server, prompt="a red apple", negative_prompt="blurry", seed=5, width=64, height=64,
            num_inference_steps=3, guidance_scale=4.0, scheduler="ddim",
        )  # fmt: skip
        assert image.size == (64, 64)
        assert image.tobytes() == Image.open(io.BytesIO(expected)).convert("RGB").tobytes()

    def test_the_address_alone_is_the_default_model(self, server):
        expected = native(server, prompt="a red apple", seed=5, num_inference_steps=3)
        for client in (InferenceClient(model=server.url), InferenceClient(base_url=server.url)):
            image = client.text_to_image("a red apple", seed=5, num_inference_steps=3)
            assert image.tobytes() == Image.open(io.BytesIO(expected)).convert("RGB").tobytes()

    def test_image_to_image_takes_the_picture_as_inputs(self, server, picture):
        _, data, _ = as_png(picture)
        client = self.inference(server)
        image = client.image_to_image(data, prompt="blue", num_inference_steps=2)
        assert image.size == (128, 128)
        assert client.image_to_image(data).size == (128, 128)

    def test_errors_carry_the_sentence(self, server):
        with pytest.raises(HfHubHTTPError) as missing:
            self.inference(server, "nope").text_to_image("x")
        assert missing.value.response.status_code == 404
        assert "plate" in missing.value.response.json()["error"]


class TestWebui:
    def test_txt2img_answers_pictures_with_rising_seeds_and_info(self, webui, server):
        result = webui.txt2img(
            prompt="a ((red)) apple",
            negative_prompt="ugly",
            seed=1003,
            steps=3,
            cfg_scale=7,
            width=64,
            height=64,
            batch_size=2,
            n_iter=2,
            sampler_name="Euler a",
            scheduler="Karras",
        )
        assert len(result.images) == 4
        assert result.info["all_seeds"] == [1003, 1004, 1005, 1006]
        assert result.info["seed"] == 1003
        assert len(result.info["infotexts"]) == 4
        assert result.parameters["sampler_name"] == "Euler a"
        expected = native(
            server, prompt="a ((red)) apple", negative_prompt="ugly", seed=1006, width=64,
            height=64, num_inference_steps=3, guidance_scale=7, scheduler="euler_ancestral",
            sigma_schedule="karras", prompt_dialect="a1111",
        )  # fmt: skip
        assert result.images[3].tobytes() == Image.open(io.BytesIO(expected)).tobytes()

    def test_txt2img_draws_and_reports_a_seed_when_none_is_given(self, webui):
        result = webui.txt2img(prompt="x", width=64, height=64)
        assert result.info["all_seeds"][0] == result.info["seed"] >= 0

    def test_txt2img_with_hires_answers_the_larger_picture(self, webui):
        result = webui.txt2img(
            prompt="x", width=64, height=64, enable_hr=True, hr_scale=2, denoising_strength=0.5
        )
        assert result.image.size == (128, 128)

    def test_img2img_and_inpainting(self, webui, picture):
        plain = webui.img2img(images=[picture], prompt="x", width=64, height=64, seed=1)
        masked = webui.img2img(
            images=[picture],
            mask_image=picture.convert("L"),
            prompt="x",
            width=64,
            height=64,
            seed=1,
            denoising_strength=0.4,
        )
        assert plain.image.size == (64, 64)
        assert masked.image.tobytes() != plain.image.tobytes()

    def test_controlnet_units_reach_the_request(self, webui, picture):
        unit = webuiapi.ControlNetUnit(image=picture, model="canny [abc]", weight=0.7)
        common = {"prompt": "x", "seed": 1, "width": 64, "height": 64}
        with_unit = webui.txt2img(**common, controlnet_units=[unit], alwayson_scripts={})
        without = webui.txt2img(**common, alwayson_scripts={})
        assert with_unit.image.tobytes() != without.image.tobytes()

    def test_extras_enlarge_and_png_info_reads(self, webui, picture):
        enlarged = webui.extra_single_image(picture, upscaling_resize=2, upscaler_1="Lanczos")
        assert enlarged.image.size == (128, 128)
        batch = webui.extra_batch_images([picture, picture], upscaling_resize=1.5)
        assert [i.size for i in batch.images] == [(96, 96)] * 2
        made = webui.txt2img(prompt="a cat", seed=9, width=64, height=64)
        assert "Seed: 9" in webui.png_info(made.image).info

    def test_every_list_has_the_shape_the_client_reads(self, webui):
        assert {"name", "aliases", "options"} <= webui.get_samplers()[0].keys()
        assert "Karras" in [s["label"] for s in webui.get_schedulers()]
        assert webui.get_sd_models()[0]["title"].startswith("plate [")
        assert webui.get_loras()[0]["name"] == "ink"
        assert "Lanczos" in [u["name"] for u in webui.get_upscalers()]
        assert list(webui.get_embeddings()["loaded"]) == ["scribble"]
        assert webui.get_memory()["ram"].keys() == {"free", "used", "total"}
        assert webui.get_cmd_flags()["api"] is True
        assert webui.get_latent_upscale_modes()[0]["name"] == "Latent"
        for empty in (
            webui.get_sd_vae,
            webui.get_hypernetworks,
            webui.get_face_restorers,
            webui.get_realesrgan_models,
            webui.get_prompt_styles,
            webui.get_artists,
            webui.get_artist_categories,
        ):
            assert empty() == []
        assert webui.refresh_checkpoints() is None
        assert "controlnet" in webui.get_scripts()["txt2img"]

    def test_a_prompt_matrix_answers_a_grid_and_its_pictures(self, webui, server):
        made = webui.txt2img(
            prompt="a|b", seed=7, width=64, height=64, script_name="Prompt matrix",
            script_args=[False, False, "positive", "comma", 2],
        )  # fmt: skip
        assert [i.size for i in made.images] == [(2 * 64 + 6, 64 + 4), (64, 64), (64, 64)]
        assert made.info["all_prompts"] == ["a", "a, b"]
        assert made.info["index_of_first_image"] == 1
        assert len(made.info["infotexts"]) == 3
        alone = webui.txt2img(prompt="a, b", seed=7, width=64, height=64)
        assert made.images[2].tobytes() == alone.image.tobytes()

    def test_a_plot_answers_its_grid_and_refuses_axes_by_name(self, webui):
        cells = [4, "1,2", [], 6, "3,4,5", []]
        common = {"prompt": "x", "seed": 1, "width": 64, "height": 64, "script_name": "x/y/z plot"}
        made = webui.txt2img(**common, script_args=cells)
        assert [i.size for i in made.images] == [(2 * 64, 3 * 64)]
        lone = webui.txt2img(**common, script_args=[*cells, 0, "", [], False, True])
        assert len(lone.images) == 7
        assert lone.info["all_seeds"] == [1] * 6
        with pytest.raises(RuntimeError, match=r"422.*Sigma min") as caught:
            webui.txt2img(**common, script_args=["Sigma min", "1,2"])
        assert "offered are Nothing, Seed" in str(caught.value)

    def test_loopback_and_sd_upscale_go_on_from_a_picture(self, webui, picture):
        common = {"images": [picture], "prompt": "x", "seed": 3, "width": 64, "height": 64}
        made = webui.img2img(**common, script_name="Loopback", script_args=[3, 0.5])
        assert made.info["all_seeds"] == [3, 4, 5]
        again = webui.img2img(
            images=[made.images[1]], prompt="x", seed=5, width=64, height=64,
            denoising_strength=0.5, inpainting_fill=1,
        )  # fmt: skip
        assert again.image.size == made.images[2].size
        larger = webui.img2img(
            **common, script_name="sd upscale", script_args=["", 8, "Lanczos", 2.0]
        )
        assert larger.image.size == (128, 128)
        assert not any("not in tiles" in w for w in larger.info.get("warnings", ()))
        with pytest.raises(RuntimeError, match=r"Outpainting mk2.* is not offered here"):
            webui.img2img(**common, script_name="Outpainting mk2")

    def test_extras_resize_to_a_size_with_and_without_crop(self, webui, picture):
        how = {"resize_mode": 1, "upscaling_resize_w": 96, "upscaling_resize_h": 32}
        assert webui.extra_single_image(picture, **how).image.size == (96, 32)
        whole = webui.extra_single_image(picture, **how, upscaling_crop=False)
        assert whole.image.size == (96, 96)

    def test_options_round_trip(self, webui):
        before = webui.get_options()["send_seed"]
        webui.set_options({"send_seed": not before})
        assert webui.get_options()["send_seed"] is (not before)
        webui.set_options({"send_seed": before})
        assert webui.get_options()["send_seed"] is before

    def test_checkpoint_helpers_find_the_models(self, webui):
        assert webui.util_get_model_names() == ["plate [6f81c6417a]", "plate-gan [1453415436]"]
        webui.util_set_model("plate-gan")
        try:
            assert webui.util_get_current_model() == "plate-gan [1453415436]"
            assert (
                webui.txt2img(prompt="", width=64, height=64).info["sd_model_name"] == "plate-gan"
            )
        finally:
            webui.set_options({"sd_model_checkpoint": ""})

    def test_progress_counts_and_interrupt_ends_with_a_flag(self, webui):
        found: list[webuiapi.WebUIApiResult] = []
        thread = threading.Thread(
            target=lambda: found.append(
                webui.txt2img(prompt="long", steps=150, width=64, height=64, batch_size=4)
            )
        )
        thread.start()
        seen = 0.0
        until = time.monotonic() + 10
        while seen == 0.0 and time.monotonic() < until:
            progress = webui.get_progress()
            seen = progress["progress"]
        assert 0 < seen < 1
        assert progress["state"]["job_count"] >= 1
        assert progress["state"]["sampling_steps"] == 150
        assert progress["current_image"] is not None
        webui.interrupt()
        thread.join(10)
        assert found[0].info["interrupted"] is True
        assert len(found[0].images) == 0  # no half-made picture pretends to be finished
        webui.util_wait_for_ready(check_interval=0.05)

    def test_skip_ends_one_round_only(self, webui):
        found: list[webuiapi.WebUIApiResult] = []
        thread = threading.Thread(
            target=lambda: found.append(
                webui.txt2img(prompt="long", steps=60, width=64, height=64, n_iter=2, seed=5)
            )
        )
        thread.start()
        while webui.get_progress()["progress"] == 0:
            time.sleep(0.02)
        webui.skip()
        thread.join(10)
        assert found[0].info["all_seeds"] == [6]


BODY = {
    "batch_size": 1, "cfg_scale": 7, "denoising_strength": 0, "enable_hr": False, "eta": 0,
    "firstphase_height": 0, "firstphase_width": 0, "height": 64, "n_iter": 1,
    "negative_prompt": "", "prompt": "example prompt", "restore_faces": False, "s_churn": 0,
    "s_noise": 1, "s_tmax": 0, "s_tmin": 0, "sampler_index": "Euler a", "seed": -1,
    "seed_resize_from_h": -1, "seed_resize_from_w": -1, "steps": 3, "styles": [],
    "subseed": -1, "subseed_strength": 0, "tiling": False, "width": 64,
}  # fmt: skip


class TestA1111Suite:
    """The shape of A1111's own tests: plain requests with its default bodies."""

    @pytest.mark.parametrize(
        "change",
        [
            {},
            {"negative_prompt": "example negative prompt"},
            {
                "prompt": "((emphasis)), (emphasis1:1.1), [to:1], [from::2], [from:to:0.3], [alt|alt1]"
            },
            {"enable_hr": True, "denoising_strength": 0.5},
            {"tiling": True},
            {"restore_faces": True},
            {"sampler_index": "PLMS"},
            {"sampler_index": "DDIM"},
            {"sampler_index": "UniPC"},
            {"n_iter": 2},
            {"batch_size": 2},
        ],
        ids=lambda change: "-".join(change) or "simple",
    )
    def test_txt2img(self, server, change):
        answer = httpx.post(f"{server.url}/sdapi/v1/txt2img", json={**BODY, **change})
        assert answer.status_code == 200
        assert len(answer.json()["images"]) == change.get("n_iter", change.get("batch_size", 1))

    @pytest.mark.parametrize(
        "change", [{}, {"mask": True}, {"mask": True, "inpainting_mask_invert": True}], ids=str
    )
    def test_img2img(self, server, picture, change):
        encoded = base64.b64encode(as_png(picture)[1]).decode()
        body = {**BODY, "init_images": [encoded], "denoising_strength": 0.75, **change}
        if change.get("mask"):
            body["mask"] = encoded
        answer = httpx.post(f"{server.url}/sdapi/v1/img2img", json=body)
        assert answer.status_code == 200
        assert isinstance(json.loads(answer.json()["info"]), dict)

    @pytest.mark.parametrize(
        "path",
        [
            "options", "cmd-flags", "samplers", "upscalers", "sd-models", "hypernetworks",
            "face-restorers", "realesrgan-models", "prompt-styles", "embeddings",
        ],
    )  # fmt: skip
    def test_lists(self, server, path):
        assert httpx.get(f"{server.url}/sdapi/v1/{path}").status_code == 200
