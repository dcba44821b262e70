"""Each dialect: golden bodies both ways, unknown fields, each error in its words."""

import base64
import json
import re

import pytest
from tests.serving import open_door

from mezzotint import errors
from mezzotint.request import GenerationRequest
from mezzotint.serve.app import DIALECTS, endpoints
from mezzotint.serve.dialects import a1111, huggingface, native, openai
from mezzotint.serve.errors import TABLE, describe
from mezzotint.service.fake import FakeConfig
from mezzotint.types import GenerationResult, ImageInput, ImageOutput

PIXEL = base64.b64encode(b"\x89PNG not really").decode()
PICTURE = ImageInput(b"\x89PNG not really")


def result(**change):
    image = ImageOutput(index=0, seed=7, data=b"png!", format="png", width=64, height=32)
    return GenerationResult(id="gen-1", images=(image,), **change)


@pytest.fixture(scope="module")
def door():
    failures = {name: name for name in vars(errors) if isinstance(getattr(errors, name), type)}
    failures |= {"Unexpected": "NoSuchError"}
    with open_door(fake=FakeConfig(failures=failures)) as opened:
        yield opened


class TestNative:
    def test_request_is_the_dataclass_itself(self):
        body = {"prompt": "a", "seed": "18446744073709551615", "guidance_scale": 5, "image": PIXEL}
        expected = GenerationRequest(prompt="a", seed=2**64 - 1, guidance_scale=5.0, image=PICTURE)
        assert native.to_request(body) == expected

    def test_result_has_the_fields_of_the_contract(self):
        written = native.from_result(result(cache="hit", warnings=("w",)))
        assert written == {
            "id": "gen-1",
            "status": "succeeded",
            "images": [
                {
                    "index": 0,
                    "seed": 7,
                    "b64": "cG5nIQ==",
                    "format": "png",
                    "width": 64,
                    "height": 32,
                    "recipe_digest": "",
                    "warnings": [],
                    "attempts": [],
                    "timings": {
                        "queue_s": 0.0,
                        "encode_s": 0.0,
                        "denoise_s": 0.0,
                        "decode_s": 0.0,
                        "gate_s": 0.0,
                        "write_s": 0.0,
                        "model_calls": 0,
                    },
                }
            ],
            "plan": {},
            "cache": "hit",
            "warnings": ["w"],
        }

    def test_unknown_field_is_refused_with_the_nearest_name(self, door):
        answer = door.http.post("/v1/generations", json={"promt": "a"})
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["field"] == "promt"
        assert "did you mean 'prompt'" in answer.json()["detail"]

    def test_problem_has_the_members_of_rfc_9457(self, door):
        answer = door.http.post("/v1/generations", json={"width": 20000})
        body = answer.json()
        assert body.keys() == {
            "type", "title", "status", "detail", "error", "instance", "field", "value", "allowed",
        }  # fmt: skip
        assert body["error"] == "InvalidField"
        assert (body["status"], body["field"], body["value"]) == (422, "width", "20000")
        assert body["allowed"] == "1 to 16384 px"
        assert body["instance"].endswith(answer.headers["x-request-id"])


class TestOpenAI:
    def test_request_translates_the_standard_names(self):
        request, answer = openai.to_request(
            {
                "model": "plate",
                "prompt": "a",
                "n": 2,
                "size": "64x32",
                "output_format": "webp",
                "output_compression": 70,
                "quality": "high",
                "user": "u",
                "seed": 3,
                "negative_prompt": "b",
            }
        )
        assert request == GenerationRequest.from_dict(
            {
                "prompt": "a",
                "negative_prompt": "b",
                "num_images": 2,
                "width": 64,
                "height": 32,
                "seed": 3,
                "output": {"format": "webp", "quality": 70},
            }
        )
        assert answer.quality == "high"

    def test_result_has_data_with_seeds(self):
        request, answer = openai.to_request({"prompt": "a", "size": "auto"})
        written = openai.from_result(result(), answer)
        assert written["data"] == [{"seed": 7, "revised_prompt": None, "b64_json": "cG5nIQ=="}]
        assert (written["size"], written["output_format"]) == ("64x32", "png")
        assert isinstance(written["created"], int)
        assert request.width is None

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "prompt"),
            ({"prompt": "a", "n": 0}, "n"),
            ({"prompt": "a", "size": "big"}, "size"),
            ({"prompt": "a", "output_format": "gif"}, "output_format"),
            ({"prompt": "a", "background": "transparent"}, "background"),
            ({"prompt": "a", "partial_images": 4}, "partial_images"),
            ({"prompt": "a", "n": 11}, "n"),  # 1 to 10, as there
            ({"prompt": 5}, "prompt"),
            ({"prompt": "a", "wdith": 4}, "wdith"),
        ],
    )
    def test_wrong_fields_are_named_in_its_words(self, door, body, param):
        answer = door.http.post("/v1/images/generations", json=body)
        assert answer.status_code == 422
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
        assert answer.json()["error"]["param"] == param
        assert answer.json()["error"]["type"] == "invalid_request_error"

    def test_num_images_is_called_n_in_messages(self):
        with open_door(limits={"images": 4}) as door:
            body = {"prompt": "a", "n": 5}
            answer = door.http.post("/v1/images/generations", json=body)
        assert answer.status_code == 413
        assert answer.json()["error"]["message"].startswith("n is too much")


class TestA1111:
    def test_request_translates_names_samplers_and_schedules(self):
        order = a1111.to_request(
            {
                "prompt": "a",
                "negative_prompt": "b",
                "seed": 5,
                "steps": 12,
                "cfg_scale": 6.5,
                "width": 64,
                "height": 32,
                "batch_size": 2,
                "n_iter": 3,
                "sampler_name": "DPM++ 2M",
                "scheduler": "Karras",
                "nobody_knows_this": 1,
            }
        )
        assert order.rounds == 3
        assert order.request == GenerationRequest(
            prompt="a",
            negative_prompt="b",
            seed=5,
            num_inference_steps=12,
            guidance_scale=6.5,
            width=64,
            height=32,
            num_images=2,
            scheduler="dpmpp_2m",
            sigma_schedule="karras",
            prompt_dialect="a1111",
        )

    def test_sampler_index_with_schedule_in_its_name_is_read(self):
        request = a1111.to_request({"sampler_index": "DPM++ 2M Karras"}).request
        assert (request.scheduler, request.sigma_schedule) == ("dpmpp_2m", "karras")

    def test_result_is_images_parameters_and_info_as_text(self):
        order = a1111.to_request({"prompt": "a", "seed": 7})
        image = result().images[0]
        body = a1111.from_images(
            [image], order, {"name": "plate", "digest": "ab"}, interrupted=False
        )
        assert body["images"] == ["cG5nIQ=="]
        info = json.loads(body["info"])
        assert (info["seed"], info["all_seeds"], info["interrupted"]) == (7, [7], False)
        assert body["parameters"] == {"prompt": "a", "seed": 7}

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"sampler_name": "Nope"}, "sampler_name"),
            ({"scheduler": "Nope"}, "scheduler"),
            ({"steps": 0}, "steps"),
            ({"steps": "many"}, "steps"),
            ({"cfg_scale": -1}, "cfg_scale"),
            ({"seed": -5}, "seed"),
            ({"width": 65}, "width"),
            ({"batch_size": 0}, "batch_size"),
        ],
    )
    def test_wrong_fields_are_named_in_its_words(self, door, body, field):
        answer = door.http.post("/sdapi/v1/txt2img", json={"prompt": "a", **body})
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["body", field]

    def test_missing_init_image_is_a_404_as_in_a1111(self, door):
        answer = door.http.post("/sdapi/v1/img2img", json={"prompt": "a"})
        assert (answer.status_code, answer.json()["detail"]) == (404, "Init image not found")

    def test_what_is_not_offered_is_said(self, door):
        body = {
            "prompt": "a",
            "restore_faces": True,
            "sampler_name": "Restart",
            "width": 64,
            "height": 64,
        }
        info = json.loads(door.http.post("/sdapi/v1/txt2img", json=body).json()["info"])
        assert any("restore_faces" in w for w in info["warnings"])
        assert any("Restart" in w for w in info["warnings"])


class TestHuggingFace:
    def test_request_reads_inputs_and_parameters(self):
        body = {
            "inputs": "a",
            "parameters": {"seed": 3, "target_size": {"width": 64, "height": 32}, "width": None},
        }
        expected = GenerationRequest(model="m", prompt="a", seed=3, width=64, height=32)
        assert huggingface.to_request("m", body) == expected

    def test_request_with_a_prompt_parameter_has_a_picture_as_inputs(self):
        request = huggingface.to_request("m", {"inputs": PIXEL, "parameters": {"prompt": "a"}})
        assert request == GenerationRequest(model="m", prompt="a", image=PICTURE)

    def test_result_is_the_bytes(self):
        answer = huggingface.from_result(result())
        assert (answer.body, answer.media_type, answer.headers["x-seed"]) == (
            b"png!",
            "image/png",
            "7",
        )

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({}, 422),
            ({"inputs": 3}, 422),
            ({"inputs": "a", "parameters": []}, 422),
            ({"inputs": "a", "parameters": {"num_images": 2}}, 422),
            ({"inputs": "a", "parameters": {"gidance": 2}}, 422),
            ({"inputs": "a", "more": 1}, 422),
        ],
    )
    def test_wrong_bodies_answer_an_error_sentence(self, door, body, status):
        answer = door.http.post("/hf/plate", json=body)
        assert answer.status_code == status
        assert isinstance(answer.json()["error"], str)


class TestTorchServe:
    @pytest.mark.parametrize(
        ("content", "media"),
        [
            (b"a cat", "text/plain"),
            (b"a cat", None),
            (b'{"data": "a cat"}', "application/json"),
            (b'{"data": {"data": "a cat"}}', "application/json"),
            (b'{"body": {"prompt": "a cat"}}', "application/json"),
            (b'[{"data": ["a cat"]}]', "application/json"),
            (b'"a cat"', "application/json"),
            (b"data=a%20cat", "application/x-www-form-urlencoded"),
            (b"a cat", "application/x-www-form-urlencoded"),
        ],
    )
    def test_prompt_is_found_in_every_body_the_examples_send(self, door, content, media):
        headers = {"content-type": media} if media else {}
        answer = door.http.post("/predictions/plate", content=content, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "image/png"
        assert door.service.requests[-1].prompt == "a cat"

    def test_form_fields_become_parameters(self, door):
        form = {"prompt": "a", "num_inference_steps": "2", "seed": "4", "guidance_scale": "1.5"}
        answer = door.http.put("/predictions/plate", data=form)
        assert answer.status_code == 200
        assert door.service.requests[-1] == GenerationRequest(
            prompt="a", num_inference_steps=2, seed=4, guidance_scale=1.5
        )

    def test_number_of_images_answers_a_grid_of_torchvisions_size(self, door):
        body = {"number_of_images": 64, "input_gender": "Men", "input_category": "SHIRTS"}
        answer = door.http.post("/predictions/plate-gan", json=body)
        assert answer.headers["content-type"] == "image/jpeg"
        assert jpeg_size(answer.content) == (530, 530)
        one = door.http.post("/predictions/plate-gan", json={"number_of_images": 1})
        assert jpeg_size(one.content) == (64, 64)

    def test_the_frames_of_one_walk_are_a_grid_too(self, door):
        body = {"number_of_images": 1, "seed": 1, "walk": {"mode": "seed", "frames": 3}}
        answer = door.http.post("/predictions/plate-gan", json=body)
        assert answer.headers["content-type"] == "image/jpeg"
        assert jpeg_size(answer.content) == (3 * 66 + 2, 68)

    def test_several_pictures_are_a_json_list(self, door):
        answer = door.http.post("/predictions/plate", json={"data": "a", "num_images": 2})
        assert [e["format"] for e in answer.json()] == ["png", "png"]

    def test_kserve_v1_answers_a_prediction_for_each_instance(self, door):
        body = {"instances": [{"data": "a", "seed": 1}, "b"]}
        answer = door.http.post("/v1/models/plate:predict", json=body)
        predictions = answer.json()["predictions"]
        assert (len(predictions), predictions[0]["seed"]) == (2, 1)
        assert base64.b64decode(predictions[0]["b64"]).startswith(b"\x89PNG")

    def test_open_inference_protocol(self, door):
        assert door.http.get("/v2/health/live").json() == {"live": True}
        assert door.http.get("/v2/health/ready").json() == {"ready": True}
        assert door.http.get("/v2").json()["extenstion"][:2] == ["kserve", "kubeflow"]
        assert door.http.get("/v2/models/plate").json()["versions"] == ["1.0"]
        body = {
            "id": "77",
            "inputs": [
                {"name": "prompt", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]},
                {"name": "seed", "datatype": "UINT64", "shape": [2], "data": [5, 6]},
            ],
            "parameters": {"num_inference_steps": 2},
        }
        answer = door.http.post("/v2/models/plate/infer", json=body).json()
        assert answer["id"] == "77"
        assert (answer["model_name"], answer["model_version"]) == ("plate", "1.0")
        image, seed = answer["outputs"]
        assert (image["datatype"], image["shape"]) == ("BYTES", [2])
        assert seed["data"] == [5, 6]
        versions = door.http.get("/v2/models/plate/versions/1/ready")
        assert (versions.status_code, versions.json()["code"]) == (404, 404)

    def test_ping_and_description(self, door):
        assert door.http.get("/ping").json() == {"status": "Healthy"}
        assert door.http.options("/").json()["openapi"] == "3.0.1"
        described = door.http.options("/predictions/plate").json()
        assert list(described["paths"]) == [
            "/predictions/{model_name}",
            "/predictions/{model_name}/{model_version}",
            "/predictions/{model_name}/{model_version}/{rest}",
        ]

    @pytest.mark.parametrize(
        ("method", "path", "body", "expected"),
        [
            ("POST", "/predictions/nope", {}, (404, "ModelNotFoundException", "Model not found: nope")),
            (
                "POST", "/predictions/plate/1.3.1", {},
                (404, "ModelVersionNotFoundException",
                 "Model version: 1.3.1 does not exist for model: plate"),
            ),
            (
                "PATCH", "/v2/health/live", None,
                (405, "MethodNotAllowedException",
                 "Requested method is not allowed, please refer to API document."),
            ),
            (
                "GET", "/v2/nothing", None,
                (404, "ResourceNotFoundException",
                 "Requested resource is not found, please refer to API document."),
            ),
            ("POST", "/predictions/plate", {"data": 5}, (400, "BadRequestException", "data must")),
            ("POST", "/predictions/plate", {"sed": 5}, (400, "BadRequestException", "unknown field")),
            ("POST", "/predictions/plate", {"data": "WorkFailed"},
             (503, "InternalServerException", "Prediction failed")),
            ("POST", "/predictions/plate", {"data": "OutOfMemory"},
             (507, "InternalServerException", "Out of resources")),
            ("POST", "/predictions/plate", {"data": "QueueFull"},
             (503, "ServiceUnavailableException", "the fake")),
        ],
    )  # fmt: skip
    def test_errors_have_code_type_and_message(self, door, method, path, body, expected):
        answer = door.http.request(method, path, json=body)
        status, kind, message = expected
        assert answer.status_code == status
        own = {"error"} if path.startswith("/v2") else set()  # what the protocol's clients read
        assert answer.json().keys() == {"code", "type", "message"} | own
        assert answer.json()["code"] == status
        assert answer.json()["type"] == kind
        assert answer.json()["message"].startswith(message)
        assert answer.headers["connection"] == "close"


class TestTorchServeManagement:
    def test_life_of_a_model(self, door):
        http = door.management
        registered = http.post("/models", params={"url": "squeeze.mar", "model_name": "sq"})
        assert registered.json()["status"] == (
            'Model "sq" Version: 1.0 registered with 0 initial workers. '
            "Use scale workers API to add workers for the model."
        )
        refused = door.http.post("/predictions/sq", content=b"a")
        assert refused.status_code == 503
        assert refused.json()["message"] == (
            'Model "sq" has no worker to serve inference request. '
            "Please use scale workers API to add workers. If this is a sequence inference, please "
            "check if it is closed, or expired; or exceeds maxSequenceJobQueueSize"
        )
        scaled = http.put("/models/sq", params={"min_worker": 2, "synchronous": "true"})
        assert scaled.json()["status"] == "Workers scaled to 2 for model: sq"
        later = http.put("/models/sq/1.0", params={"min_worker": 1})
        assert (later.status_code, later.json()["status"]) == (202, "Processing worker updates...")
        assert door.http.post("/predictions/sq", content=b"a").status_code == 200
        again = http.post("/models", params={"url": "squeeze.mar", "model_name": "sq"})
        assert (again.status_code, again.json()["type"]) == (409, "ConflictStatusException")
        second = {"url": "squeeze.mar", "model_name": "sq", "model_version": "2.0"}
        later = {**second, "initial_workers": "1", "synchronous": "false"}
        with_worker = http.post("/models", params=later)
        assert with_worker.status_code == 202
        assert len(http.get("/models/sq/all").json()) == 2
        default = http.delete("/models/sq/1.0")
        assert (default.status_code, default.json()["type"]) == (
            403,
            "InvalidModelVersionException",
        )
        switched = http.put("/models/sq/2.0/set-default").json()["status"]
        assert switched == 'Default version successfully updated for model "sq" to "2.0"'
        assert http.get("/models/sq").json()[0]["modelVersion"] == "2.0"
        gone = http.delete("/models/sq/1.0")
        assert gone.json() == {"status": 'Model "sq" unregistered'}
        assert http.delete("/models/sq").status_code == 200
        assert http.get("/models/sq").json()["type"] == "ModelNotFoundException"

    def test_list_is_paged(self, door):
        first = door.management.get("/models", params={"limit": 1}).json()
        assert first["models"] == [{"modelName": "plate", "modelUrl": "plate"}]
        assert first["nextPageToken"] == "1"
        rest = door.management.get("/models", params={"limit": 1, "next_page_token": "1"}).json()
        assert [m["modelName"] for m in rest["models"]] == ["plate-gan"]
        assert rest["nextPageToken"] == "2"  # as TorchServe has it where a page ends with the list
        over = door.management.get("/models", params={"limit": 1, "next_page_token": "2"}).json()
        assert over == {"models": []}

    def test_description_has_torchserves_fields(self, door):
        described = door.management.get("/models/plate").json()[0]
        assert {
            "modelName", "modelVersion", "modelUrl", "engine", "runtime", "minWorkers",
            "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout",
            "maxRetryTimeoutInSec", "deviceType", "continuousBatching", "status",
            "loadedAtStartup", "workers", "jobQueueStatus",
        } <= described.keys()  # fmt: skip
        assert "customizedMetadata" not in described
        params = {"customized": "true"}
        more = door.management.get("/models/plate", params=params).json()[0]
        assert more.keys() - described.keys() == {"customizedMetadata"}
        assert described["workers"][0]["status"] == "READY"

    @pytest.mark.parametrize(
        ("params", "status"),
        [
            ({}, 400),
            ({"url": "http://127.0.0.1/x.mar"}, 400),
            ({"url": "s3://bucket/x.mar"}, 404),
            ({"url": "../../etc/passwd"}, 404),
            ({"url": "missing.mar"}, 404),
            ({"url": "x.mar", "model_name": "../x"}, 400),
            ({"url": "x.mar", "runtime": "lua"}, 400),
            ({"url": "x.mar", "initial_workers": "99999999"}, 400),
        ],
    )
    def test_bad_registrations_are_refused(self, door, params, status):
        answer = door.management.post("/models", params=params)
        assert (answer.status_code, answer.json()["code"]) == (status, status)

    def test_metrics_use_torchserves_names(self, door):
        door.http.post("/predictions/plate", content=b"a")
        text = door.metrics.get("/metrics").text
        for name in ("ts_inference_requests_total", "ts_queue_latency_microseconds", "Requests2XX"):
            assert re.search(rf"^{name}", text, re.MULTILINE), name
        one = door.metrics.get("/metrics", params={"name[]": "ts_inference_requests_total"}).text
        assert "ts_inference_requests_total{" in one
        assert "Requests2XX" not in one


PATHS = {
    "native": ("/v1/generations", lambda p: {"prompt": p}),
    "openai": ("/v1/images/generations", lambda p: {"prompt": p}),
    "a1111": ("/sdapi/v1/txt2img", lambda p: {"prompt": p}),
    "huggingface": ("/hf/plate", lambda p: {"inputs": p}),
}
FAMILY = [name for name, cls in vars(errors).items()
          if isinstance(cls, type) and issubclass(cls, errors.MezzotintError)
          and name != "UnknownName"]  # fmt: skip


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize("name", FAMILY)
def test_each_error_of_the_tree_answers_the_status_of_the_table(door, dialect, name):
    path, body = PATHS[dialect]
    answer = door.http.post(path, json=body(name))
    assert answer.status_code == TABLE[getattr(errors, name)][0]
    if answer.status_code in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("dialect", PATHS)
def test_an_unexpected_failure_is_a_500_that_tells_nothing(door, dialect):
    path, body = PATHS[dialect]
    answer = door.http.post(path, json=body("Unexpected"))
    assert answer.status_code == 500
    assert "NoSuchError" not in answer.text
    assert "told to fail" not in answer.text


def test_the_table_covers_the_whole_tree_of_errors():
    def walk(cls):
        yield cls
        for sub in cls.__subclasses__():
            yield from walk(sub)

    ours = [c for c in walk(errors.MezzotintError) if c.__module__ == "mezzotint.errors"]
    assert [c.__name__ for c in ours if c not in TABLE] == []


def test_unknown_model_is_a_404_and_unknown_scheduler_a_422():
    assert describe(errors.UnknownName("model", "x", ())).status == 404
    assert describe(errors.UnknownName("scheduler", "x", ())).status == 422


def test_every_path_belongs_to_the_dialect_that_serves_it():
    for dialect in DIALECTS:
        for endpoint in dialect.endpoints:
            if endpoint.listener == "generation" and endpoint.path != "/":
                path = re.sub(r"{\w+(:\w+)?}", "x", endpoint.path)
                owner = next(d for d in DIALECTS if d.pattern.match(path))
                assert owner.name == dialect.name, path


def test_no_two_endpoints_share_method_and_path():
    for listener in ("generation", "management", "metrics"):
        pairs = [(e.method, e.path) for e in endpoints(listener)]
        assert len(pairs) == len(set(pairs))


def jpeg_size(data: bytes) -> tuple[int, int]:
    at = data.index(b"\xff\xc0")
    return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(
        data[at + 5 : at + 7], "big"
    )
