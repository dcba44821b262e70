"""Models for the engine: when a fast copy is made."""

import copy
import gc
import weakref

from tests import tiny

from mezzotint.models.config import ModelsConfig
from mezzotint.models.formats.components import from_pipeline
from mezzotint.service.provision import model_provider
from mezzotint.service.provision.model_provider import ModelProvider


def test_a_fast_copy_is_made_once_and_again_when_it_has_learnt_something(tmp_path, monkeypatch):
    learnt, told = [], []

    def view(model, *, learns, **_):
        told.append(learns)
        fast = copy.deepcopy(model)
        fast.study = None if learnt else lambda: learnt.append("learnt")
        return fast

    monkeypatch.setattr(model_provider, "turbo_view", view)
    model = from_pipeline(tiny.build("sd1"), name="sd1")
    config = ModelsConfig(home=str(tmp_path), backend="torch")
    provider = ModelProvider(config, extra=[model], learns=True)
    with provider.use("sd1", turbo=True) as first, provider.use("sd1", turbo=True) as again:
        assert again is first
        first.study()
        assert learnt == ["learnt"]
    with provider.use("sd1", turbo=True) as second, provider.use("sd1", turbo=True) as again:
        assert again is second
        assert second is not first
        assert second.study is None
    assert told == [True, True]
    with ModelProvider(config, extra=[model]).use("sd1", turbo=True):
        assert told == [True, True, False]
    known = weakref.ref(model)
    del provider, model, first, second, again
    gc.collect()
    assert known() is None
