"""The open inference protocol over gRPC, driven by Triton's own client."""

import base64
import time

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from tests.serving import running_server

from mezzotint.errors import InvalidRequest
from mezzotint.serve.rpc.inference import infer_body
from mezzotint.serve.rpc.messages import message


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    given = {"serve": {"grpc_port": 0, "limits": {"body_bytes": 1 << 20}}, "fake": {"step_s": 0.01}}
    with running_server(tmp_path_factory.mktemp("grpc"), **given) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server.lines["grpc"]) as opened:
        yield opened


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.lines["grpc"]) as opened:
        yield opened


def tensor(name, values, datatype="BYTES"):
    kinds = {"BYTES": np.object_, "UINT64": np.uint64, "FP32": np.float32, "INT32": np.int32}
    array = np.array(values, dtype=kinds[datatype])
    made = triton.InferInput(name, list(array.shape), datatype)
    return made.set_data_from_numpy(array)


def infer(channel, request, service="inference.GRPCInferenceService", **more):
    method = channel.unary_unary(
        f"/{service}/ModelInfer",
        request_serializer=message("inference.ModelInferRequest").SerializeToString,
        response_deserializer=message("inference.ModelInferResponse").FromString,
    )
    return method(request, **more)


def asked(**fields):
    return message("inference.ModelInferRequest")(model_name="plate", **fields)


def prompt(**fields):
    return {"name": "prompt", "datatype": "BYTES", "shape": [1],
            "contents": {"bytes_contents": [b"an apple"]}, **fields}  # fmt: skip


def test_health_and_metadata(client):
    assert (client.is_server_live(), client.is_server_ready()) == (True, True)
    assert client.is_model_ready("plate")
    assert client.is_model_ready("plate", "1.0")
    assert client.get_server_metadata().name == "mezzotint"
    metadata = client.get_model_metadata("plate")
    assert (metadata.name, list(metadata.versions)) == ("plate", ["1.0"])
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [
        ("image", "BYTES", [-1]), ("seed", "UINT64", [-1]),
    ]  # fmt: skip


def test_pictures_are_those_of_http(client, server):
    inputs = [tensor("prompt", ["an apple", "zwölf"]), tensor("seed", [5, (1 << 64) - 1], "UINT64")]
    result = client.infer("plate", inputs, request_id="r-1", parameters={"num_inference_steps": 2})
    head = result.get_response()
    assert (head.id, head.model_name, head.model_version) == ("r-1", "plate", "1.0")
    assert result.as_numpy("seed").tolist() == [5, (1 << 64) - 1]
    body = {"prompt": "zwölf", "seed": (1 << 64) - 1, "num_inference_steps": 2}
    http = httpx.post(f"{server.url}/v1/generations", json=body).json()["images"][0]["b64"]
    assert result.as_numpy("image")[1] == base64.b64decode(http)
    assert result.get_output("image").parameters["content_type"].string_param == "image/png"


def test_only_the_outputs_that_are_asked_for_come(client):
    outputs = [triton.InferRequestedOutput("seed")]
    result = client.infer("plate", [tensor("seed", [9], "UINT64")], outputs=outputs)
    assert (result.as_numpy("seed").tolist(), result.as_numpy("image")) == ([9], None)


def test_contents_by_type_are_taken_and_torchserves_name_of_the_service(channel):
    steps = {"name": "num_inference_steps", "datatype": "INT32", "shape": [1],
             "contents": {"int_contents": [2]}}  # fmt: skip
    scale = {"name": "guidance_scale", "datatype": "FP32", "shape": [1],
             "contents": {"fp32_contents": [1.5]}}  # fmt: skip
    seed = {"name": "seed", "datatype": "UINT64", "shape": [1],
            "contents": {"uint64_contents": [3]}}  # fmt: skip
    request = asked(inputs=[prompt(), steps, scale, seed])
    name = "org.pytorch.serve.grpc.openinference.GRPCInferenceService"
    one, other = infer(channel, request), infer(channel, request, name)
    assert one.raw_output_contents[1] == b"\x03" + bytes(7)
    assert one.raw_output_contents[0] == other.raw_output_contents[0]
    assert one.raw_output_contents[0][4:8] == b"\x89PNG"


@pytest.mark.parametrize(
    ("call", "status", "sentence"),
    [
        (lambda c: c.infer("nope", [tensor("prompt", ["a"])]), "NOT_FOUND", "Model not found: nope"),
        (lambda c: c.infer("plate", [tensor("prompt", ["a"])], model_version="9"), "NOT_FOUND",
         "Model version: 9 does not exist for model: plate"),
        (lambda c: c.is_model_ready("a/b"), "NOT_FOUND", "a/b"),
        (lambda c: c.infer("", [tensor("prompt", ["a"])]), "INVALID_ARGUMENT", "model_name"),
        (lambda c: c.infer("plate", [tensor("num_inference_steps", [0], "INT32")]),
         "INVALID_ARGUMENT", "num_inference_steps"),
        (lambda c: c.infer("plate", [tensor("guidance_scale", [np.nan], "FP32")]),
         "INVALID_ARGUMENT", "guidance_scale"),
        (lambda c: c.infer("plate", [tensor("prompt", ["a"])],
                           parameters={"guidance_scale": float("inf")}),
         "INVALID_ARGUMENT", "guidance_scale must be a finite number"),
        (lambda c: c.infer("plate", [tensor("num_inference_steps", [151], "INT32")]),
         "RESOURCE_EXHAUSTED", "at most 150 steps"),
        (lambda c: c.infer("plate", [tensor("prompt", ["x" * (1 << 20)])]), "RESOURCE_EXHAUSTED", ""),
        (lambda c: c.infer("plate", [tensor("prompt", ["a"])], compression_algorithm="gzip"),
         "UNIMPLEMENTED", ""),
        (lambda c: c.get_model_config("plate"), "UNIMPLEMENTED", ""),
    ],
)  # fmt: skip
def test_errors_have_a_status_and_our_sentence(client, call, status, sentence):
    with pytest.raises(triton.InferenceServerException) as error:
        call(client)
    assert error.value.status() == f"StatusCode.{status}"
    assert sentence in error.value.message()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"inputs": [prompt()], "raw_input_contents": [b"", b""]}, "2 entries for 1 inputs"),
        ({"inputs": [prompt()], "raw_input_contents": [b""]}, "contents and raw contents"),
        (
            {"inputs": [prompt(contents={"bytes_contents": [b"a"], "int_contents": [1]})]},
            "one type, got int_contents and bytes_contents",
        ),
    ],
)
def test_contents_that_are_there_twice_are_refused(fields, sentence):
    with pytest.raises(InvalidRequest, match=sentence):
        infer_body(asked(**fields))


RUNNING = "mezzotint_http_running"
GONE = 'mezzotint_requests_total{door="torchserve",status="499"}'


def told(server, name):
    """Return the number that the metrics have for a name and labels, 0 if there is none."""
    lines = httpx.get(f"{server.metrics}/metrics").text.splitlines()
    return sum(float(t.rpartition(" ")[2]) for t in lines if t.rpartition(" ")[0] == name)


def wait_for(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def long_request():
    return asked(inputs=[prompt()], parameters={"num_inference_steps": {"int64_param": 150}})


def test_a_cancelled_call_cancels_its_request(channel, server):
    before = told(server, GONE)
    call = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=message("inference.ModelInferRequest").SerializeToString,
    ).future(long_request())
    wait_for(lambda: told(server, RUNNING) == 1)
    call.cancel()
    wait_for(lambda: told(server, RUNNING) == 0)
    assert told(server, GONE) == before + 1


def test_a_deadline_that_passes_cancels_its_request(channel, server):
    before = told(server, GONE)
    with pytest.raises(grpc.RpcError) as error:
        infer(channel, long_request(), timeout=0.3)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_for(lambda: told(server, GONE) == before + 1)
    assert told(server, RUNNING) == 0
