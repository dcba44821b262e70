"""Small pictures and control pictures, by whose they are."""

import base64

from tests.serving import open_door
from tests.unit.serve.site.test_gallery import finish

from mezzotint.service.fake_pictures import draw, read_size

PICTURE = base64.b64encode(draw(b"\x01" * 32, 8, 8, "png")).decode()


def test_a_small_picture_is_a_square_that_may_be_kept_for_good(tmp_path):
    with open_door(tmp_path) as door:
        path = f"/v1/jobs/{finish(door, {'prompt': 'a boat', 'width': 64, 'height': 128})}/images/0"
        answer = door.http.get(f"{path}/small?side=64")
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "image/webp"
        assert "immutable" in answer.headers["cache-control"]
        again = {"if-none-match": answer.headers["etag"]}
        assert door.http.get(f"{path}/small?side=64", headers=again).status_code == 304
        assert door.http.get(f"{path}/small?side=128", headers=again).status_code == 200
        for query in ("side=63", "side=513", "side=a"):
            refused = door.http.get(f"{path}/small?{query}")
            assert refused.status_code == 422
            assert refused.json()["field"] == "side"
        assert door.http.get(path.replace("/images/0", "/images/7/small")).status_code == 404
        assert door.http.get("/v1/jobs/job-none/images/0/small").status_code == 404


def test_small_pictures_of_others_are_not_there(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"{'a' * 24} ann generate\n{'b' * 24} bob generate\n")
    keys.chmod(0o600)
    with open_door(tmp_path / "jobs", api_keys=str(keys)) as door:
        ann, bob = ({"authorization": f"Bearer {k * 24}"} for k in "ab")
        path = f"/v1/jobs/{finish(door, {'prompt': 'secret'}, **ann)}/images/0/small"
        assert door.http.get(path, headers=ann).status_code == 200
        assert door.http.get(path, headers=bob).status_code == 404
        assert door.http.get(path).status_code == 401


def test_a_control_picture_is_prepared_as_the_request_would(tmp_path):
    with open_door(tmp_path) as door:
        made = door.http.post("/v1/preprocess", json={"image": PICTURE, "preprocess": "canny:1:2"})
        assert made.status_code == 200, made.text
        assert made.headers["content-type"] == "image/png"
        assert read_size(made.content) == (8, 8)
        for body, field in (({"image": PICTURE}, "preprocess"), ({"preprocess": "none"}, "image")):
            refused = door.http.post("/v1/preprocess", json=body)
            assert (refused.status_code, refused.json()["field"]) == (422, field)
        unknown = door.http.post("/v1/preprocess", json={"image": PICTURE, "preprocess": "x"})
        assert unknown.status_code == 422
