"""Pictures drawn once, before the code was moved, are drawn again: equal byte for byte.

The bits depend on the processor and on library versions. The digests of several machines are
kept; on any other one pixels are compared with the kept pixels instead, within decibels.
"""

import numpy as np
import pytest
from tests.roads.golden import drawing

import mezzotint as mz

KEPT = drawing.read()
CASES = {case["name"]: case for case in KEPT["cases"]}
FILES = ("seed", "format", "width", "height", "recipe", "index", "digest", "model_calls")


@pytest.fixture(scope="module")
def engines(tmp_path_factory, share_exports):
    home = tmp_path_factory.mktemp("golden")
    share_exports(home / "own")
    with drawing.Engines(home) as started:
        yield started


@pytest.fixture(scope="module")
def machine(engines):
    """Processor and libraries, as digests are kept by."""
    return drawing.fingerprint(engines["own"])


def parameters():
    slow = pytest.mark.slow
    return [pytest.param(n, id=n, marks=slow if c["slow"] else ()) for n, c in CASES.items()]


@pytest.mark.parametrize("name", parameters())
def test_a_golden_picture_is_drawn_again(engines, machine, name):
    case = CASES[name]
    drawn = drawing.draw(engines[case["engine"]], case["request"], KEPT["inputs"])
    assert len(drawn) == len(case["pictures"])
    digests = drawing.digests_of(KEPT, case, machine)
    for number, (kept, (found, image)) in enumerate(zip(case["pictures"], drawn, strict=True)):
        assert {k: found[k] for k in FILES} == {k: kept[k] for k in FILES}
        if digests is not None:
            pixels, file = digests[number]
            assert found["pixels"] == pixels, told(kept["array"], image)
            if mz.__version__ == KEPT["version"]:  # it stands in every file
                assert found["bytes"] == file, "equal pixels, another file"
        else:
            near = drawing.psnr(kept["array"], image.pixels)
            assert near >= case["least_db"], told(kept["array"], image)


def told(kept, image):
    """Say how far a picture is from the kept one, and what it warned of."""
    found = image.pixels
    apart = np.abs(kept.astype(int) - found)
    changed = np.count_nonzero(apart.max(axis=-1))
    return (
        f"{changed} of {apart[..., 0].size} pixels differ, by {apart.max()} levels at most, "
        f"{drawing.psnr(kept, found):.1f} dB; warnings: {image.warnings}"
    )


def test_the_kept_pixels_are_those_of_the_digests():
    assert sum(len(case["pictures"]) for case in CASES.values()) >= 60
    for case in CASES.values():
        for picture in case["pictures"]:
            assert drawing.digest(picture["array"]) == picture["pixels"], case["name"]
