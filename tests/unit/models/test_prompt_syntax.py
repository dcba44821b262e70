import pytest
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.errors import InvalidRequest
from mezzotint.models.prompt_editing import edits
from mezzotint.models.prompt_syntax import BREAK, Span, spans
from mezzotint.techniques.tags import lora_tags


def weighted(text, dialect):
    return [(s.text, pytest.approx(s.weight)) for s in spans(text, dialect)]


# The vectors that A1111 publishes with its parser.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ],
        ),
        ("", [("", 1.0)]),
    ],
)
def test_a1111_emphasis_reads_the_published_vectors(text, expected):
    assert weighted(text, "a1111") == expected


def test_a1111_break_ends_a_chunk_and_carries_no_weight():
    assert spans("(a BREAK b)", "a1111") == (Span("a", 1.1), BREAK, Span("b", 1.1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [{b|d{:.5] c", [(5, "a  c"), (10, "a {b|d{ c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[from::2]x", [(2, "fromx"), (10, "x")]),
        ("[a|(b:1.1)]", [(k, "a" if k % 2 else "(b:1.1)") for k in range(1, 11)]),
        ("[fe|]male", [(k, "female" if k % 2 else "male") for k in range(1, 11)]),
        ("[fe|||]male", [(k, "female" if k % 4 == 1 else "male") for k in range(1, 11)]),
    ],
)
def test_a1111_editing_reads_the_published_vectors(text, expected):
    assert [(e.until_step, e.text) for e in edits(text, 10)] == expected


def test_a1111_editing_counts_on_in_a_second_pass():
    def second(text):
        return [(e.until_step, e.text) for e in edits(text, 10, first_pass_steps=10)]

    assert second("a [b:.5] c") == [(10, "a b c")]
    assert second("a [b:1.5] c") == [(5, "a  c"), (10, "a b c")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a (b) c", [("a ", 1.0), ("b", 1.1), (" c", 1.0)]),
        ("((a))", [("a", 1.21)]),
        ("(a (b:0.5) c:2)", [("a ", 2.0), ("b", 0.5), (" c", 2.0)]),
        ("((a:1.5))", [("a", 1.5)]),
        (r"\(a\)", [("(a)", 1.0)]),
        ("[a]", [("[a]", 1.0)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(open", [("(open", 1.0)]),
    ],
)
def test_comfyui_weights_replace_where_they_are_explicit(text, expected):
    assert weighted(text, "comfyui") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red+ apple", [("a ", 1.0), ("red", 1.1), (" apple", 1.0)]),
        ("a red++ apple-", [("a ", 1.0), ("red", 1.21), (" ", 1.0), ("apple", 0.9)]),
        ("(big cat)1.3 sits", [("big cat", 1.3), (" sits", 1.0)]),
        ("(big cat)++", [("big cat", 1.21)]),
        ("(a b+)0.5", [("a ", 0.5), ("b", 0.55)]),
        ("well-known x-ray", [("well-known x-ray", 1.0)]),
        (r"\(a\)", [("(a)", 1.0)]),
        ("a) b", [("a) b", 1.0)]),
    ],
)
def test_compel_weights_multiply(text, expected):
    assert weighted(text, "compel") == expected


def test_compel_functions_are_refused_with_the_field_to_use_instead():
    with pytest.raises(InvalidRequest, match="use the request field walk"):
        spans('("a cat", "a dog").blend(0.5, 0.5)', "compel")


def test_plain_text_means_itself():
    assert spans("(a:1.3) [b] c+", "plain") == (Span("(a:1.3) [b] c+"),)
    with pytest.raises(InvalidRequest, match="prompt_dialect"):
        spans("a", "midjourney")


def test_lora_tags_leave_the_prompt():
    text, tags = lora_tags("a cat <lora:ink:0.8>, <lora:old paper>")
    assert text == "a cat , "
    assert [(t.name, t.scale) for t in tags] == [("ink", 0.8), ("old paper", 1.0)]


@given(st.text(alphabet="ab ()[]:|\\+-.1\n", max_size=40), st.integers(1, 6))
def test_no_text_breaks_a_reader_or_an_edit(text, steps):
    for dialect in ("plain", "a1111", "comfyui", "compel"):
        assert len(spans(text, dialect)) >= 1
    resolved = edits(text, steps)
    assert resolved[-1].until_step == steps
    assert [e.until_step for e in resolved] == sorted({e.until_step for e in resolved})


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1000,
        "(" * 1000,
        "[" * 490 + "a:b:" + "]" * 490,
        "(" * 490 + ")" * 490,
        "[a|" * 900,
        ")" * 1000,
        "((a]" * 490,
    ],
)
def test_hostile_nesting_is_read_quickly_as_text(text):
    for dialect in ("a1111", "comfyui", "compel"):
        assert spans(text, dialect)
    assert edits(text, 3)[-1].until_step == 3


def test_more_brackets_than_anybody_means_are_refused():
    with pytest.raises(InvalidRequest, match="at most 1000 brackets, got 20000"):
        edits("[" * 20_000, 3)
    with pytest.raises(InvalidRequest, match="at most 1000 brackets"):
        spans("(" * 20_000, "comfyui")
    assert spans("(" * 20_000, "plain") == (Span("(" * 20_000),)
