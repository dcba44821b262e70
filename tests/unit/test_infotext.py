import pytest

from mezzotint.infotext import format_infotext, parse_infotext

REAL = """a watercolour, (soft light:1.2)
wide shot
Negative prompt: blurry,
low quality
Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b, Model: name, Lora hashes: "ink: 1234, pen: 5678", Version: v1.10.1"""


def test_a_text_as_a1111_writes_it_is_read():
    prompt, negative, fields = parse_infotext(REAL)
    assert prompt == "a watercolour, (soft light:1.2)\nwide shot"
    assert negative == "blurry,\nlow quality"
    assert fields["Lora hashes"] == "ink: 1234, pen: 5678"
    assert fields["Version"] == "v1.10.1"
    assert len(fields) == 10


@pytest.mark.parametrize(
    "value", ["a, b", "a: b", 'say "x", y', "two\nlines", "back\\slash, x", "плюс, 猫"]
)
def test_quoted_values_come_back(value):
    fields = {"Steps": "1", "Seed": "2", "Some note": value}
    assert parse_infotext(format_infotext("p", "n", fields)) == ("p", "n", fields)


def test_a_last_line_with_fewer_than_three_pairs_is_prompt():
    assert parse_infotext("a cat\nSteps: 1, Seed: 2") is None


def test_a_pair_whose_key_equals_its_value_is_written_once():
    assert format_infotext("p", fields={"Tiling": "Tiling"}) == "p\nTiling"


def test_one_letter_keys_are_refused_since_readers_drop_them():
    with pytest.raises(ValueError, match="two or more"):
        format_infotext("p", fields={"k": 1})


def test_none_is_left_out_and_whole_numbers_have_no_point():
    assert format_infotext("p", fields={"CFG scale": 7.0, "Model": None}) == "p\nCFG scale: 7"
