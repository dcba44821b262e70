"""Gates that look at previews, and budgets: fewer calls, the same outcome every time."""

import random

import numpy as np
import pytest
import torch
from tests import tiny
from tests.roads.test_exactness import differing, run, storm

from mezzotint.errors import GateRejected
from mezzotint.gates.base import GateInfo, Score
from mezzotint.gates.judge import GateJudge
from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.models.formats.components import from_pipeline
from mezzotint.request import Gates, GateSettings, GenerationRequest
from mezzotint.service.composition import ServiceConfig
from mezzotint.service.engine import Engine
from mezzotint.service.local import LocalService


class Parity:
    """A gate whose score is 0 or 1 by the pixels: about half of all pictures pass 0.5."""

    def __init__(self, name, blocks=False):
        self.info = GateInfo(name=name, doc="parity", default_threshold=0.5, blocks=blocks)

    def score(self, pixels):
        return Score(float(int(pixels.astype(np.int64).sum()) % 2), "parity")


class Brittle(Parity):
    def score(self, pixels):
        raise RuntimeError("out of order")


class Judge(GateJudge):
    def _gate(self, name):
        made = {"brittle": Brittle("brittle"), "stop": Parity("stop", blocks=True)}
        return made.get(name) or Parity(name)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("home")
    models = [from_pipeline(tiny.build("sd1"), name="sd")]
    store = ModelsConfig(home=str(home), backend="torch", placement=PlacementConfig(device="cpu"))
    config = ServiceConfig(models=store)

    class Started(Engine):
        def __init__(self):
            self.service = LocalService(config, models=models, judge=Judge())

    with Started() as started:
        yield started


def ask(seed=1, steps=8, guidance=1.0, **gates):
    common = {
        k: gates.pop(k) for k in ("max_attempts", "keep", "budget_calls", "budget_s") if k in gates
    }
    rules = tuple((name, GateSettings(**settings)) for name, settings in gates.items())
    return GenerationRequest(
        model="sd", prompt="a cat", seed=seed, num_inference_steps=steps, scheduler="euler",
        guidance_scale=guidance, gates=Gates(gates=rules, **common),
    )  # fmt: skip


EARLY = {"threshold": 0.5, "preview_at": 0.5}


def outcomes(engine, seeds, **fields):
    found = {}
    for seed in seeds:
        try:
            found[seed] = run(engine, ask(seed=seed, **fields)).images[0]
        except GateRejected as error:
            found[seed] = str(error)
    return found


def test_an_attempt_that_fails_at_its_preview_is_given_up_and_logged(engine):
    found = outcomes(engine, range(8), parity=EARLY, max_attempts=8)
    logs = [image.attempts for image in found.values() if not isinstance(image, str)]
    given_up = [a for log in logs for a in log if "preview at step 4 of 8" in a.verdicts[0].reason]
    assert given_up
    assert all(not a.accepted and not a.verdicts[0].passed for a in given_up)
    assert all(len({a.seed for a in log}) == len(log) for log in logs)
    assert [[a.number for a in log] for log in logs] == [list(range(len(log))) for log in logs]


def test_the_same_request_has_the_same_attempts_alone_and_in_a_storm(engine):
    requests = [
        ask(seed=s, parity=EARLY, late={"threshold": 0.5}, max_attempts=12) for s in range(10)
    ]
    solo = {}
    for k, request in enumerate(requests):
        try:
            solo[k] = run(engine, request)
        except GateRejected:
            continue
    kept = [requests[k] for k in solo]
    stormy = storm(engine, kept, random.Random(3), cancels=2)
    renumbered = dict(enumerate(solo.values()))
    assert differing(renumbered, stormy) == []
    for k, result in renumbered.items():
        log, other = result.images[0].attempts, stormy[k].images[0].attempts
        assert [a.seed for a in log] == [a.seed for a in other]
        assert repr([a.verdicts for a in log]) == repr([a.verdicts for a in other])  # nan is nan


def test_when_every_attempt_was_given_up_there_is_no_picture(engine):
    with pytest.raises(GateRejected, match="all 3 attempts were given up at a preview"):
        run(engine, ask(brittle=EARLY, max_attempts=3))


def test_a_blocking_gate_is_not_tried_again_after_a_preview(engine):
    found = outcomes(engine, range(6), stop=EARLY, max_attempts=5)
    said = [text for text in found.values() if isinstance(text, str)]
    assert said
    assert all("gate stop blocked" in text for text in said)
    assert all(len(i.attempts) == 1 for i in found.values() if not isinstance(i, str))


def test_gates_that_only_see_the_picture_keep_their_word(engine):
    plain = outcomes(engine, range(3), parity={"threshold": 0.5}, max_attempts=6)
    assert all("preview" not in a.verdicts[0].reason for i in plain.values() for a in i.attempts)


def test_a_budget_of_calls_ends_the_attempts_with_a_warning(engine):
    never = {"threshold": -1.0}
    image = run(engine, ask(parity=never, max_attempts=9, budget_calls=3 * 8)).images[0]
    assert len(image.attempts) == 3
    assert any("budget of the gates was spent after 3 attempts" in w for w in image.warnings)
    image = run(engine, ask(parity=never, max_attempts=2, budget_calls=1000)).images[0]
    assert len(image.attempts) == 2
    assert not any("budget" in w for w in image.warnings)


def test_a_budget_of_no_seconds_allows_one_attempt(engine):
    image = run(engine, ask(parity={"threshold": -1.0}, max_attempts=9, budget_s=0.0)).images[0]
    assert len(image.attempts) == 1


def test_one_step_has_no_preview_and_says_so(engine):
    image = run(engine, ask(steps=1, parity={"threshold": 2.0, "preview_at": 0.5})).images[0]
    assert any("no preview was judged" in w for w in image.warnings)
