import stat

import numpy as np
import pytest

from mezzotint.errors import InvalidRequest
from mezzotint.images.animation import encode_animation
from mezzotint.images.codec import decode_image, encode
from mezzotint.images.config import ImageConfig
from mezzotint.images.signing import (
    check_can_sign,
    check_signature,
    load_signing_key,
    make_key_pair,
    read_trusted_keys,
    sign_file,
    split_signature,
)
from mezzotint.request import Animation, Output
from mezzotint.textchunks import read_texts

PIXELS = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "sign.pem"
    make_key_pair(path, "studio")
    return load_signing_key(path), read_trusted_keys(tmp_path / "sign.pem.pub")


def file(kind):
    if kind in ("gif", "apng"):
        animation = Animation(format=kind)
        return encode_animation([PIXELS, 255 - PIXELS], animation, parameters="p", recipe="{}")
    return encode(PIXELS, kind, parameters="a 猫", recipe="{}")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "apng"])
def test_a_signature_is_over_every_byte_and_comes_out_again(keys, kind):
    key, trusted = keys
    plain = file(kind)
    signed = sign_file(plain, key)
    assert signed == sign_file(plain, key) != plain
    assert split_signature(signed)[0] == plain
    assert check_signature(signed, trusted)[:2] == ("known", "studio")
    assert check_signature(signed, {}).status == "unknown"
    assert check_signature(plain, trusted).status == "unsigned"
    assert read_texts(signed)["mezzotint"] == "{}"
    if kind not in ("gif", "apng"):
        assert np.array_equal(decode_image(signed), decode_image(plain))
    for place in range(0, len(signed), max(len(signed) // 60, 1)):
        changed = bytearray(signed)
        changed[place] ^= 1
        assert check_signature(bytes(changed), trusted).status in ("broken", "unsigned"), place
    assert check_signature(signed + b"x", trusted).status == "broken"


def test_a_signature_does_not_move_to_another_picture(keys):
    key, trusted = keys
    text = split_signature(sign_file(file("png"), key))[1].encode()
    other = sign_file(encode(255 - PIXELS, recipe="{}"), key)
    moved = other.replace(split_signature(other)[1].encode(), text)
    assert check_signature(moved, trusted).status == "broken"


def test_a_private_key_is_its_owners_alone_and_never_overwritten(tmp_path):
    path = tmp_path / "sign.pem"
    line = make_key_pair(path, "studio")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert line.split()[0::2] == ["ed25519", "studio"]
    with pytest.raises(InvalidRequest, match="exists"):
        make_key_pair(path, "studio")
    with pytest.raises(InvalidRequest, match="one word"):
        make_key_pair(tmp_path / "other", "two words")


def test_what_cannot_be_signed_is_refused_before_it_is_drawn(tmp_path):
    with pytest.raises(InvalidRequest, match="keys sign"):
        check_can_sign(Output(sign=True), ImageConfig())
    (tmp_path / "no.pem").write_text("nothing")
    with pytest.raises(InvalidRequest, match="signing_key"):
        check_can_sign(Output(sign=True), ImageConfig(signing_key=str(tmp_path / "no.pem")))
    make_key_pair(tmp_path / "sign.pem", "studio")
    config = ImageConfig(signing_key=str(tmp_path / "sign.pem"))
    check_can_sign(Output(sign=True), config)
    with pytest.raises(InvalidRequest, match="metadata"):
        check_can_sign(Output(sign=True, metadata=False), config)


def test_trusted_keys_of_another_form_are_refused(tmp_path):
    (tmp_path / "keys").write_text("# ours\nrsa abc me\n")
    with pytest.raises(InvalidRequest, match="line 2"):
        read_trusted_keys(tmp_path / "keys")
