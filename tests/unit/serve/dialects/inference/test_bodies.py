"""The open inference protocol over HTTP, driven by Triton's own client."""

import base64
import re

import numpy as np
import pytest
import tritonclient.http as triton
from tests.serving import open_door, running_server

from mezzotint.errors import InvalidRequest
from mezzotint.serve.dialects.inference.bodies import read_asked


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with (
        running_server(tmp_path_factory.mktemp("jobs")) as server,
        triton.InferenceServerClient(server.url.removeprefix("http://")) as opened,
    ):
        yield opened


@pytest.fixture(scope="module")
def door():
    with open_door() as opened:
        yield opened


def tensor(name, values, datatype="BYTES", *, binary_data=True):
    kinds = {"BYTES": np.object_, "UINT64": np.uint64, "FP32": np.float32, "INT32": np.int32}
    array = np.array(values, dtype=kinds[datatype])
    made = triton.InferInput(name, list(array.shape), datatype)
    return made.set_data_from_numpy(array, binary_data=binary_data)


def test_the_client_reads_health_and_metadata(client):
    assert (client.is_server_live(), client.is_server_ready()) == (True, True)
    assert client.is_model_ready("plate")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("plate")
    assert (metadata["name"], metadata["inputs"][0]["name"]) == ("plate", "prompt")


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("wanted", [True, False, None])
def test_pictures_come_as_binary_data_or_as_json(client, sent, wanted):
    inputs = [
        tensor("prompt", ["an apple", "zwölf"], binary_data=sent),
        tensor("seed", [5, (1 << 64) - 1], "UINT64", binary_data=sent),
        tensor("guidance_scale", [[1.5]], "FP32", binary_data=sent),
    ]
    outputs = None
    if wanted is not None:
        names = ("seed", "image")
        outputs = [triton.InferRequestedOutput(n, binary_data=wanted) for n in names]
    result = client.infer("plate", inputs, outputs=outputs, request_id="r-1")
    head = result.get_response()
    assert (head["id"], head["model_name"], head["model_version"]) == ("r-1", "plate", "1.0")
    assert result.as_numpy("seed").tolist() == [5, (1 << 64) - 1]
    pictures = result.as_numpy("image")
    assert pictures.shape == (2,)
    image = result.get_output("image")["parameters"]
    if wanted is False:
        assert image == {"content_type": "base64", "format": "png"}
        assert all(base64.b64decode(p)[:4] == b"\x89PNG" for p in pictures)
    else:
        assert image["content_type"] == "image/png"
        assert all(p[:4] == b"\x89PNG" for p in pictures)
    assert [o["name"] for o in head["outputs"]] == (
        ["image", "seed"] if wanted is None else ["seed", "image"]
    )


def test_binary_and_json_are_the_same_picture(client):
    inputs = [tensor("prompt", ["an apple"]), tensor("seed", [7], "UINT64")]
    raw = client.infer("plate", inputs).as_numpy("image")[0]
    named = triton.InferRequestedOutput("image", binary_data=False)
    text = client.infer("plate", inputs, outputs=[named]).as_numpy("image")[0]
    assert base64.b64decode(text) == raw


def test_the_client_is_told_what_is_wrong(client):
    with pytest.raises(
        triton.InferenceServerException, match=r"num_inference_steps .*got 0"
    ) as told:
        client.infer("plate", [tensor("num_inference_steps", [0], "INT32")])
    assert told.value.status() == "400"
    with pytest.raises(triton.InferenceServerException, match="Model not found: nope") as told:
        client.infer("nope", [tensor("prompt", ["a"])])
    assert told.value.status() == "404"
    with pytest.raises(triton.InferenceServerException, match="Content-Encoding gzip"):
        client.infer("plate", [tensor("prompt", ["a"])], request_compression_algorithm="gzip")
    wanted = triton.InferRequestedOutput("image", class_count=3)
    with pytest.raises(triton.InferenceServerException, match="classification"):
        client.infer("plate", [tensor("prompt", ["a"])], outputs=[wanted])


def test_numbers_that_are_none_are_refused_by_name(client):
    with pytest.raises(triton.InferenceServerException, match=r"guidance_scale .*nan"):
        client.infer("plate", [tensor("prompt", ["a"]), tensor("guidance_scale", [np.nan], "FP32")])


def infer(door, tensors, **more):
    body = {"inputs": tensors, **more}
    return door.http.post("/v2/models/plate/infer", json=body)


def test_a_timeout_is_a_deadline(door):
    prompt = {"name": "prompt", "data": ["a"]}
    assert infer(door, [prompt], parameters={"timeout": 2_500_000}).status_code == 200
    assert door.service.requests[-1].deadline_s == 2.5
    both = infer(door, [prompt], parameters={"timeout": 5, "deadline_s": 1})
    assert "give one" in both.json()["error"]
    assert "timeout" in infer(door, [prompt], parameters={"timeout": 0}).json()["error"]


def test_elements_of_bytes_are_pictures_texts_or_json():
    tensors = [
        {"name": "image", "data": [b"\x89PNG raw"]},
        {"name": "mask", "data": [b"aGVsbG8="]},
        {"name": "prompt", "data": ["zwölf".encode()]},
        {"name": "loras", "data": [b'[{"name": "x"}]']},
        {"name": "num_inference_steps", "data": [b"4"]},
    ]
    (row,) = read_asked({"inputs": tensors}).rows
    assert row["image"].data == b"\x89PNG raw"
    assert row["mask"] == "aGVsbG8="
    assert (row["prompt"], row["num_inference_steps"]) == ("zwölf", 4)
    assert row["loras"] == [{"name": "x"}]


def test_a_text_that_is_none_is_refused():
    with pytest.raises(InvalidRequest, match="prompt must be a text in UTF-8"):
        read_asked({"inputs": [{"name": "prompt", "data": [b"\xff\xfe"]}]})


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([{"name": "image"}, {"name": "image"}], "names an output twice"),
        ([{"name": "depth"}], r"outputs\[0\].name must be one of 'image', 'seed'"),
        ([{"name": "seed", "parameters": {"shared_memory_region": "x"}}], "shared_memory_region"),
    ],
)
def test_outputs_that_cannot_be_are_refused(door, outputs, message):
    answer = infer(door, [{"name": "prompt", "data": ["a"]}], outputs=outputs)
    assert answer.status_code == 400
    assert re.search(message, answer.json()["error"]), answer.json()


def test_only_the_outputs_that_are_asked_for_come(door):
    answer = infer(door, [{"name": "seed", "data": [3]}], outputs=[{"name": "seed"}])
    assert answer.json()["outputs"] == [
        {"name": "seed", "shape": [1], "datatype": "UINT64", "data": [3]}
    ]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"datatype": "STRING"}, r"inputs\[0\].datatype must be one of BYTES, BOOL"),
        ({"shape": [2]}, r"inputs\[0\].data must have 2 values, as its shape says, got 1"),
        ({"shape": [-1]}, r"inputs\[0\].shape must be a list of sizes"),
    ],
)
def test_a_tensor_is_what_it_says(door, said, message):
    answer = infer(door, [{"name": "prompt", "data": ["a"], **said}])
    assert answer.status_code == 400
    assert re.search(message, answer.json()["error"]), answer.json()


def test_the_client_loads_unloads_and_lists_models(client):
    client.unload_model("plate-gan")
    assert not client.is_model_ready("plate-gan")
    states = {m["name"]: m["state"] for m in client.get_model_repository_index()}
    assert states == {"plate": "READY", "plate-gan": "UNAVAILABLE"}
    client.load_model("plate-gan")
    assert client.is_model_ready("plate-gan")
    with pytest.raises(triton.InferenceServerException, match="parameters"):
        client.load_model("plate-gan", config="{}")
    with pytest.raises(triton.InferenceServerException, match="nobody"):
        client.load_model("nobody")
