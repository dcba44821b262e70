"""Tests mezzotint.engine.execution.runner: what a decoder's call is a measure of."""

import contextlib

from tests import tiny

from mezzotint.engine.config import EngineConfig
from mezzotint.engine.execution.filling import NO_ADAPTERS
from mezzotint.engine.execution.runner import Runner
from mezzotint.engine.state import ImageId, StepBatch
from mezzotint.models.families.gan import GanConfig, build_generator, load_gan, write_gan
from mezzotint.models.formats.components import from_pipeline
from mezzotint.planning.planner import plan
from mezzotint.request import GenerationRequest

CONFIG = GanConfig(latent_size=4, image_size=16, channels=(4, 4))


class One:
    """The one model there is."""

    def __init__(self, model):
        self.model = model

    @contextlib.contextmanager
    def use(self, name, adapters=NO_ADAPTERS, *, turbo=False):
        yield self.model


def test_the_first_call_of_a_size_is_no_measure_since_it_compiles_and_certifies(tmp_path):
    state = dict(build_generator(CONFIG).state_dict())
    model = load_gan(write_gan(tmp_path / "gan", CONFIG, state))
    runner = Runner(EngineConfig(), One(model), certificates=None)
    ids = [ImageId("r", k) for k in range(2)]
    request = GenerationRequest(model="gan", seed=1, num_images=2)
    key = None
    for image, one in zip(ids, plan(request, model.spec).plans, strict=True):
        key = runner.encode(image, one, {}).key
    seconds = []
    for count in (1, 1, 2, 2, 1):
        batch = StepBatch(kind="decode", ids=tuple(ids[:count]), key=key, bucket=count)
        seconds.append(runner.decode(batch).seconds)
    assert [s is not None for s in seconds] == [False, True, False, True, True]


def test_a_denoiser_rests_while_the_last_of_its_pictures_is_decoded():
    model, rested = from_pipeline(tiny.build("sd1"), name="sd1"), []
    model.networks["denoiser"].rest = lambda: rested.append(len(runner._slots))
    runner = Runner(EngineConfig(), One(model), certificates=None)
    ids = [ImageId("r", k) for k in range(2)]
    request = GenerationRequest(
        model="sd1", prompt="a", seed=1, num_images=2, num_inference_steps=2
    )
    key = None
    for image, one in zip(ids, plan(request, model.spec).plans, strict=True):
        key = runner.encode(image, one, {}).key
    for image in ids:
        runner.decode(StepBatch(kind="decode", ids=(image,), key=key, bucket=1))
        runner.release(image)
    assert rested == [1]
