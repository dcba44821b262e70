import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.gates.policy import Accept, GatePolicy, GateRule, Reject, Retry, decide, margin

NSFW = GateRule(gate="nsfw", threshold=0.7, spread=0.5, blocks=True)
QUALITY = GateRule(gate="quality", threshold=60.0, spread=30.0)
BEAUTY = GateRule(gate="beauty", threshold=5.0, passes_below=False, spread=2.0)


def policy(*rules, **options):
    return GatePolicy(rules=rules, **options)


def attempt(the_policy, *scores):
    return [rule.judge(score) for rule, score in zip(the_policy.rules, scores, strict=True)]


def test_the_first_attempt_that_passes_is_kept():
    p = policy(QUALITY, max_attempts=3)
    assert decide([attempt(p, 80.0)], p) == Retry(1)
    assert decide([attempt(p, 80.0), attempt(p, 59.0)], p) == Accept(1, passed=True)


def test_a_blocked_picture_is_refused_at_once_and_not_retried():
    p = policy(NSFW, QUALITY, max_attempts=10)
    decision = decide([attempt(p, 0.9, 10.0)], p)
    assert isinstance(decision, Reject)
    assert "nsfw" in decision.reason
    assert "0.9" in decision.reason
    assert "at most 0.7" in decision.reason


def test_best_makes_every_attempt_and_keeps_the_widest_margin():
    p = policy(QUALITY, BEAUTY, max_attempts=3, keep="best")
    attempts = [attempt(p, 20.0, 5.2), attempt(p, 50.0, 7.0), attempt(p, 40.0, 5.1)]
    assert decide(attempts[:1], p) == Retry(1)
    assert decide(attempts, p) == Accept(1, passed=True)  # margins 0.1, 0.33, 0.05


def test_when_nothing_passes_the_best_is_kept_and_says_so():
    p = policy(QUALITY, max_attempts=2)
    assert decide([attempt(p, 80.0), attempt(p, 90.0)], p) == Accept(0, passed=False)


def test_a_passing_attempt_beats_a_failing_one_with_a_better_worst_gate():
    p = policy(QUALITY, max_attempts=2, keep="best")
    assert decide([attempt(p, 61.0), attempt(p, 60.0)], p) == Accept(1, passed=True)


def test_an_earlier_attempt_wins_a_tie():
    p = policy(QUALITY, max_attempts=2, keep="best")
    assert decide([attempt(p, 10.0), attempt(p, 10.0)], p) == Accept(0, passed=True)


@pytest.mark.parametrize(("on_error", "passed"), [("open", True), ("closed", False)])
def test_an_error_in_a_gate_is_read_as_the_request_says(on_error, passed):
    rule = GateRule(gate="quality", threshold=1.0, on_error=on_error)
    verdict = rule.judge_error("no weights")
    assert verdict.passed is passed
    assert on_error in verdict.reason
    assert margin([verdict], policy(rule)) == (0.0 if passed else -math.inf)


def test_a_score_that_is_not_a_number_never_passes():
    assert not QUALITY.judge(math.nan).passed
    assert not BEAUTY.judge(math.inf).passed


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 120)), min_size=1, max_size=6))
def test_every_sequence_of_attempts_comes_to_one_ending(scores):
    p = policy(NSFW, QUALITY, max_attempts=4)
    attempts = []
    for pair in scores:
        attempts.append(attempt(p, *pair))
        decision = decide(attempts, p)
        if not isinstance(decision, Retry):
            break
        assert len(attempts) < 4
    if isinstance(decision, Accept):
        kept = attempts[decision.attempt]
        assert kept[0].passed  # never a blocked picture
        assert decision.passed == all(v.passed for v in kept)
