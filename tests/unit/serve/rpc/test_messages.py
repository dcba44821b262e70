"""Messages against Triton's own descriptions of them, and against bytes written by hand."""

import pytest
from tritonclient.grpc import service_pb2

from mezzotint.serve.rpc.messages import MESSAGES, message


def described(made):
    """Return the fields of a message: number -> name, type, whether repeated, inner message."""
    return {
        f.number: (f.name, f.type, f.is_repeated, f.message_type.name if f.message_type else "")
        for f in made.fields
    }


def theirs():
    """Return Triton's messages by name, those inside others too."""
    found = {}
    waiting = list(service_pb2.DESCRIPTOR.message_types_by_name.values())
    while waiting:
        one = waiting.pop()
        if not one.GetOptions().map_entry:
            found[one.name] = one
        waiting += one.nested_types
    return found


@pytest.mark.parametrize("name", MESSAGES["inference"])
def test_each_message_of_the_protocol_is_what_triton_has(name):
    ours = message(f"inference.{name}").DESCRIPTOR
    assert described(ours) == described(theirs()[name])


def test_a_choice_knows_what_was_chosen_though_it_is_the_default():
    parameter = message("inference.InferParameter")
    assert parameter(bool_param=False).WhichOneof("choice") == "bool_param"
    assert parameter().WhichOneof("choice") is None
    assert parameter(bool_param=False).SerializeToString() == b"\x08\x00"


def test_torchserves_messages_have_its_numbers():
    request = message("torchserve.PredictionsRequest")
    data = b"\x0a\x01m\x12\x032.0\x1a\x0a\x0a\x04data\x12\x02hi"
    assert request.FromString(data) == request(
        model_name="m", model_version="2.0", input={"data": b"hi"}
    )
    register = message("torchserve.RegisterModelRequest")
    made = register.FromString(b"\x18\x02\x2a\x01n\x40\x01\x4a\x01u")
    assert (made.initial_workers, made.model_name, made.synchronous, made.url) == (
        2,
        "n",
        True,
        "u",
    )
    scale = message("torchserve.ScaleWorkerRequest").FromString(b"\x18\x05\x20\x03\x30\x01")
    assert (scale.max_worker, scale.min_worker, scale.synchronous) == (5, 3, True)
    listed = message("torchserve.ListModelsRequest").FromString(b"\x08\x07\x10\x02")
    assert (listed.limit, listed.next_page_token) == (7, 2)
    described_ = message("torchserve.DescribeModelRequest").FromString(b"\x0a\x01m\x18\x01")
    assert (described_.model_name, described_.customized) == ("m", True)
    assert message("torchserve.PredictionResponse")(prediction=b"x").SerializeToString() == b"\n\1x"
    assert message("torchserve.ManagementResponse")(msg="x").SerializeToString() == b"\n\1x"
