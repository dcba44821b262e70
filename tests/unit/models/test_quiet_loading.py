"""Loading asks nobody."""

import pytest
from transformers import dynamic_module_utils

from mezzotint.models.quiet_loading import quiet_loading


def test_code_of_a_model_is_refused_though_a_terminal_says_yes(monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    with quiet_loading(), pytest.raises(ValueError, match="trust_remote_code"):
        dynamic_module_utils.resolve_trust_remote_code(
            None, "model", has_local_code=False, has_remote_code=True
        )
    assert asked == []
    assert before == dynamic_module_utils.TIME_OUT_REMOTE_CODE
