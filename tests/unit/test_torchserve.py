"""The handlers for a real TorchServe, driven as its service loop drives them."""

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import mezzotint.models
from mezzotint.errors import InvalidRequest, ModelError, NotReady
from mezzotint.request import GenerationRequest
from mezzotint.service.engine import Engine
from mezzotint.torchserve import DiffusersHandler, GANHandler, find_model, handle, unwrap

BUILTIN = Path(mezzotint.models.__path__[0]) / "builtin"


class Context:
    """What TorchServe 0.12 hands to a handler."""

    def __init__(self, folder: Path, home: Path, **options: object) -> None:
        self.system_properties = {"model_dir": str(folder), "gpu_id": None, "batch_size": 4}
        self.model_yaml_config = {"handler": {"home": str(home), **options}}
        self.manifest = {}
        self.types: dict[int, str] = {}
        self.codes: dict[int, int] = {}

    def set_response_content_type(self, place: int, value: str) -> None:
        self.types[place] = value

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.codes[idx] = code


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def gan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory as TorchServe unpacks it: a manifest and files beside it."""
    folder = tmp_path_factory.mktemp("gan")
    shutil.copytree(BUILTIN / "plate-gan", folder, dirs_exist_ok=True)
    (folder / "MAR-INF").mkdir()
    (folder / "MAR-INF" / "MANIFEST.json").write_text('{"model": {"modelName": "g"}}')
    (folder / "handler.py").write_text("")
    return folder


@pytest.fixture(scope="module")
def gan(gan_folder: Path, home: Path) -> GANHandler:
    handler = GANHandler()
    handler.initialize(Context(gan_folder, home))
    yield handler
    handler.engine.close()


def test_a_batch_goes_in_as_a_list_and_comes_out_as_one_with_a_seed_each(gan, gan_folder, home):
    context = Context(gan_folder, home)
    data = [{"body": {"seed": 1}}, {"body": {"seed": 2}}, {"body": b'{"seed": 1}'}]
    answers = gan.handle(data, context)
    assert len(answers) == 3
    assert answers[0] == answers[2] != answers[1]
    assert set(context.types.values()) == {"image/jpeg"}
    assert context.codes == {}


def test_each_picture_is_the_one_its_seed_makes_alone(gan, gan_folder, home):
    context = Context(gan_folder, home, output="array")
    arrays = GANHandler()
    arrays.initialize(context)
    try:
        both = arrays.handle([{"body": {"seed": 5, "num_images": 2}}], context)
        first, second = (np.array(a, np.uint8) for a in json.loads(both[0]))
        alone = np.array(json.loads(arrays.handle([{"body": {"seed": 6}}], context)[0]), np.uint8)
        assert np.array_equal(second, alone)
        assert not np.array_equal(first, second)
        with Engine(["plate-gan"], home=home) as engine:
            direct = engine.generate(GenerationRequest(model="plate-gan", seed=6)).images[0]
        assert np.array_equal(direct.pixels, alone)
    finally:
        arrays.engine.close()


def test_number_of_images_answers_torchvisions_grid(gan, gan_folder, home):
    body = {"number_of_images": 64, "input_gender": "Men", "input_pose": "x"}
    (answer,) = gan.handle([{"body": body}], Context(gan_folder, home))
    single = gan.handle([{"body": {"number_of_images": 1}}], Context(gan_folder, home))[0]
    side = Image.open(io.BytesIO(single)).size[0]
    assert Image.open(io.BytesIO(answer)).size == (8 * (side + 2) + 2, 8 * (side + 2) + 2)


def test_a_wrong_item_fails_alone_with_torchserves_body(gan, gan_folder, home):
    context = Context(gan_folder, home)
    answers = gan.handle([{"body": {"seed": 1}}, {"body": {"sed": 1}}, {"data": 5}], context)
    assert Image.open(io.BytesIO(answers[0])).format == "JPEG"
    assert context.codes == {1: 400, 2: 400}
    wrong = json.loads(answers[1])
    assert (wrong["code"], wrong["type"]) == (400, "BadRequestException")
    assert "'sed'" in wrong["message"]


def test_the_function_entry_point_chooses_by_model(gan_folder, home):
    context = Context(gan_folder, home)
    assert handle(None, context) is None  # TorchServe loads a model this way
    (answer,) = handle([{"body": {"number_of_images": 2}}], context)
    assert Image.open(io.BytesIO(answer)).format == "JPEG"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"data": b"a cat"}, {"prompt": "a cat"}),
        ({"body": bytearray(b"a cat")}, {"prompt": "a cat"}),
        ({"body": {"data": "a cat"}}, {"prompt": "a cat"}),
        ({"data": b'{"prompt": "a", "seed": 3}'}, {"prompt": "a", "seed": 3}),
        ({"body": {"data": {"body": {"data": "a"}}}}, {"prompt": "a"}),
        ({"data": b'"a cat"'}, {"prompt": "a cat"}),
        (
            {"prompt": b"a", "num_inference_steps": b"4", "guidance_scale": b"2.5", "seed": b"7"},
            {"prompt": "a", "num_inference_steps": 4, "guidance_scale": 2.5, "seed": "7"},
        ),
        ({"prompt": b"123"}, {"prompt": "123"}),
    ],
)
def test_parameters_are_found_however_torchserve_delivers_them(row, expected):
    assert unwrap(row) == expected


def test_objects_inside_one_another_without_end_are_a_text_and_no_crash():
    deep = '{"a":' * 100_000
    assert unwrap({"data": deep}) == {"prompt": deep}
    assert unwrap({"guidance_scale": "[" * 100_000}) == {"guidance_scale": "[" * 100_000}


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(InvalidRequest, match="text or JSON"):
        unwrap({"data": b"\xff\xfe"})


def test_the_model_is_found_beside_the_manifest_or_one_level_down(tmp_path, gan_folder):
    assert find_model(gan_folder) == gan_folder
    outer = tmp_path / "outer"
    shutil.copytree(BUILTIN / "plate-gan", outer / "weights")
    assert find_model(outer) == outer / "weights"
    shutil.copytree(BUILTIN / "plate-gan", outer / "more")
    with pytest.raises(ModelError, match="found more, weights"):
        find_model(outer)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="found none"):
        find_model(tmp_path / "empty")


def test_wrong_options_are_refused_by_name(gan_folder, home):
    with pytest.raises(InvalidRequest, match="output"):
        DiffusersHandler().initialize(Context(gan_folder, home, output="video"))


def test_inference_before_initialize_is_refused():
    with pytest.raises(NotReady):
        DiffusersHandler().inference([GenerationRequest()])


def test_gpu_id_chooses_the_device(monkeypatch, gan_folder, home):
    seen = {}

    def engine(models, *, device, home, allow_downloads):
        seen["device"] = device
        return SimpleNamespace()

    monkeypatch.setattr("mezzotint.torchserve.Engine", engine)
    context = Context(gan_folder, home)
    context.system_properties["gpu_id"] = 1
    DiffusersHandler().initialize(context)
    assert seen["device"] == "cuda:1"
