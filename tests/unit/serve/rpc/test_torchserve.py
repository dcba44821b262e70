"""TorchServe's own gRPC services, driven by stubs of grpcio."""

import base64
import json

import grpc
import httpx
import pytest
from tests.serving import running_server

from mezzotint.errors import InvalidField
from mezzotint.serve.rpc.messages import message
from mezzotint.serve.rpc.torchserve import read_input

INFERENCE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
MANAGEMENT = "org.pytorch.serve.grpc.management.ManagementAPIsService"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    ports = {"serve": {"grpc_port": 0, "grpc_management_port": 0}}
    with running_server(tmp_path_factory.mktemp("grpc"), **ports) as running:
        yield running


@pytest.fixture(scope="module")
def inference(server):
    with grpc.insecure_channel(server.lines["grpc"]) as opened:
        yield opened


@pytest.fixture(scope="module")
def management(server):
    with grpc.insecure_channel(server.lines["grpc_management"]) as opened:
        yield opened


def predict(channel, model, given, version=""):
    call = channel.unary_unary(
        f"/{INFERENCE}/Predictions",
        request_serializer=message("torchserve.PredictionsRequest").SerializeToString,
        response_deserializer=message("torchserve.PredictionResponse").FromString,
    )
    request = {"model_name": model, "model_version": version, "input": given}
    return call(message("torchserve.PredictionsRequest")(**request)).prediction


def manage(channel, name, **fields):
    kind = message(f"torchserve.{name}Request")
    call = channel.unary_unary(
        f"/{MANAGEMENT}/{name}",
        request_serializer=kind.SerializeToString,
        response_deserializer=message("torchserve.ManagementResponse").FromString,
    )
    return call(kind(**fields)).msg


def refused(function, *arguments, **named):
    with pytest.raises(grpc.RpcError) as error:
        function(*arguments, **named)
    return error.value.code().name, error.value.details()


def test_ping(inference):
    call = inference.unary_unary(
        f"/{INFERENCE}/Ping",
        request_serializer=message("torchserve.Empty").SerializeToString,
        response_deserializer=message("torchserve.TorchServeHealthResponse").FromString,
    )
    assert json.loads(call(message("torchserve.Empty")()).health) == {"status": "Healthy"}


def test_predictions_are_those_of_http(inference, server):
    body = {"prompt": "zwölf", "seed": 3, "num_inference_steps": 2}
    http = httpx.post(f"{server.url}/predictions/plate", json=body).content
    form = {"prompt": "zwölf".encode(), "seed": b"3", "num_inference_steps": b"2"}
    assert http[:4] == b"\x89PNG"
    assert predict(inference, "plate", form) == http
    assert predict(inference, "plate", {"data": json.dumps(body).encode()}) == http
    assert predict(inference, "plate", form, "1.0")[:4] == b"\x89PNG"
    assert predict(inference, "plate", {"data": b"a text"})[:4] == b"\x89PNG"
    several = json.loads(predict(inference, "plate", {"prompt": b"a", "num_images": b"2"}))
    assert [base64.b64decode(one["b64"])[:4] for one in several] == [b"\x89PNG"] * 2


def test_a_stream_of_predictions_has_one_message(inference):
    call = inference.unary_stream(
        f"/{INFERENCE}/StreamPredictions",
        request_serializer=message("torchserve.PredictionsRequest").SerializeToString,
        response_deserializer=message("torchserve.PredictionResponse").FromString,
    )
    request = message("torchserve.PredictionsRequest")(model_name="plate", input={"data": b"a"})
    assert [one.prediction[:4] for one in call(request)] == [b"\x89PNG"]
    bad = message("torchserve.PredictionsRequest")(model_name="nope", input={"data": b"a"})
    assert refused(lambda: list(call(bad))) == ("NOT_FOUND", "Model not found: nope")


def test_predictions_that_cannot_be_are_refused(inference):
    assert refused(predict, inference, "plate", {"data": b"a"}, "9") == (
        "NOT_FOUND", "Model version: 9 does not exist for model: plate",
    )  # fmt: skip
    assert refused(predict, inference, "", {"data": b"a"}) == (
        "INVALID_ARGUMENT", "Parameter model_name is required.",
    )  # fmt: skip
    status, sentence = refused(predict, inference, "plate", {"sed": b"1", "prompt": b"a"})
    assert (status, "unknown field" in sentence) == ("INVALID_ARGUMENT", True)


def test_models_are_registered_scaled_described_and_removed(management, inference):
    told = manage(
        management, "RegisterModel", url="b", model_name="b", initial_workers=1, synchronous=True
    )
    assert told == 'Model "b" Version: 1.0 registered with 1 initial workers'
    assert predict(inference, "b", {"data": b"a"})[:4] == b"\x89PNG"
    (one,) = json.loads(manage(management, "DescribeModel", model_name="b"))
    assert (one["modelName"], one["minWorkers"]) == ("b", 1)
    scaled = manage(management, "ScaleWorker", model_name="b", min_worker=3, synchronous=True)
    assert scaled == "Workers scaled to 3 for model: b"
    (one,) = json.loads(manage(management, "DescribeModel", model_name="b", model_version="all"))
    assert (one["minWorkers"], one["maxWorkers"]) == (3, 3)
    listed = json.loads(manage(management, "ListModels", limit=1))
    assert ([m["modelName"] for m in listed["models"]], listed["nextPageToken"]) == (["b"], "1")
    assert manage(management, "SetDefault", model_name="b", model_version="1.0") == (
        'Default version successfully updated for model "b" to "1.0"'
    )
    assert manage(management, "UnregisterModel", model_name="b") == 'Model "b" unregistered'
    assert refused(manage, management, "DescribeModel", model_name="b")[0] == "NOT_FOUND"


@pytest.mark.parametrize(
    ("name", "fields", "status", "sentence"),
    [
        ("RegisterModel", {}, "INVALID_ARGUMENT", "Parameter url is required."),
        ("RegisterModel", {"url": "a/b"}, "PERMISSION_DENIED", "model store"),
        ("RegisterModel", {"url": "https://x.example/m.mar"}, "INVALID_ARGUMENT", "never downloaded"),
        ("ScaleWorker", {"model_name": "plate", "min_worker": 3, "max_worker": 2},
         "INVALID_ARGUMENT", "max_worker cannot be less than min_worker."),
        ("ScaleWorker", {"model_name": "nope"}, "NOT_FOUND", "nope"),
        ("SetDefault", {"model_name": "plate"}, "INVALID_ARGUMENT", "model_version is required"),
        ("SetDefault", {"model_name": "plate", "model_version": "7"}, "NOT_FOUND",
         "Model version 7 does not exist for model plate"),
        ("DescribeModel", {}, "INVALID_ARGUMENT", "model_name is required"),
    ],
)  # fmt: skip
def test_management_that_cannot_be_is_refused(management, name, fields, status, sentence):
    told = refused(manage, management, name, **fields)
    assert (told[0], sentence in told[1]) == (status, True), told


def test_management_stands_at_its_own_port_alone(inference):
    assert refused(manage, inference, "ListModels")[0] == "UNIMPLEMENTED"


@pytest.mark.parametrize(
    ("said", "status", "sentence"),
    [("failed", "INTERNAL", "Prediction failed: it failed"), ("died", "RESOURCE_EXHAUSTED", "Worker died."),
     ("memory", "RESOURCE_EXHAUSTED", "Out of resources")],
)  # fmt: skip
def test_handler_code_answers_and_fails_in_its_words(management, inference, said, status, sentence):
    manage(management, "RegisterModel", url="code.mar", initial_workers=1)
    try:
        assert predict(inference, "code", {"data": b"as it is"}) == b"as it is"
        assert predict(inference, "code", {"seed": b"5", "data": b"x"}) in (b"5", b"x")
        assert refused(predict, inference, "code", {"data": said.encode()}) == (status, sentence)
    finally:
        manage(management, "UnregisterModel", model_name="code")


def test_a_model_without_workers_is_unavailable(management, inference):
    manage(management, "RegisterModel", url="idle", model_name="idle")
    try:
        status, sentence = refused(predict, inference, "idle", {"data": b"a"})
        assert (status, "has no worker to serve" in sentence) == ("UNAVAILABLE", True)
    finally:
        manage(management, "UnregisterModel", model_name="idle")


def test_handler_code_gets_bytes_under_their_names():
    kind, body = read_input({"data": b"\x00\xff", "text": b"a"}, is_code=True)
    boundary = kind.partition("boundary=")[2].encode()
    parts = body.split(b"--" + boundary)
    assert [b'filename="data"' in part for part in parts[1:3]] == [True, True]
    assert parts[1].endswith(b"\r\n\r\n\x00\xff\r\n")


@pytest.mark.parametrize(
    ("data", "kind"),
    [(b'{"a": 1}', "application/json"), (b"{red|blue} apple", "text/plain"),
     (b"a pear", "text/plain"), (b"\x89PNG\xff", "image/*")],
)  # fmt: skip
def test_one_input_is_a_body_of_http(data, kind):
    assert read_input({"data": data}, is_code=False) == (kind, data)
    assert read_input({"body": data}, is_code=False) == (kind, data)


@pytest.mark.parametrize("name", ["", 'a"b', "a\r\nb", "x" * 101, "a b"])
def test_names_of_inputs_that_no_form_can_hold_are_refused(name):
    with pytest.raises(InvalidField, match="has a name that is none"):
        read_input({name: b"a", "seed": b"1"}, is_code=False)
