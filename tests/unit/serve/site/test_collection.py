"""The collection's calls: the short list, marks, and many pictures as one file."""

import io
import zipfile

import pytest
from tests.serving import open_door
from tests.unit.serve.site.test_gallery import finish


def test_the_short_list_says_what_one_searches_by_and_goes_on_where_it_ended(tmp_path):
    with open_door(tmp_path) as door:
        asked = {"prompt": "a boat", "seed": 2**64 - 1, "num_images": 2, "loras": [{"name": "ink"}]}
        first = finish(door, asked)
        second = finish(door, {"model": "plate-gan", "seed": 5})
        body = door.http.get("/v1/gallery/pictures").json()
        assert body["next"] is None
        assert [(p["job"], p["index"], p["seed"]) for p in body["pictures"]] == [
            (second, 0, 5), (first, 0, 2**64 - 1), (first, 1, 0),
        ]  # fmt: skip
        assert body["pictures"][0]["asked"] == {"model": "plate-gan"}
        assert body["pictures"][1]["asked"] == {"prompt": "a boat", "loras": ["ink"]}
        page = door.http.get("/v1/gallery/pictures?limit=1").json()
        assert ([p["job"] for p in page["pictures"]], page["next"]) == ([second], second)
        rest = door.http.get(f"/v1/gallery/pictures?limit=1&after={second}").json()
        assert [p["job"] for p in rest["pictures"]] == [first, first]
        assert door.http.get("/v1/gallery/pictures?limit=0").status_code == 422


def test_marks_are_kept_replaced_and_removed(tmp_path):
    with open_door(tmp_path) as door:
        path = f"/v1/jobs/{finish(door, {'prompt': 'a boat', 'num_images': 2})}/images/1/marks"
        marks = {"star": True, "rating": 4, "boards": ["sea", "best", "sea"]}
        assert door.http.put(path, json=marks).json() == {**marks, "boards": ["best", "sea"]}

        def listed():
            found = door.http.get("/v1/gallery/pictures").json()["pictures"]
            return [picture["marks"] for picture in found]

        assert listed() == [{}, {**marks, "boards": ["best", "sea"]}]
        assert door.http.put(path, json={"rating": 1}).json() == {"rating": 1}
        assert listed() == [{}, {"rating": 1}]
        door.http.put(path, json={})
        assert listed() == [{}, {}]
        for body in ({"rating": 6}, {"star": 1}, {"boards": [""]}, {"boards": "sea"}, {"x": 1}):
            assert door.http.put(path, json=body).status_code == 422, body
        assert door.http.put(path.replace("/1/", "/2/"), json={}).status_code == 404


def test_an_archive_holds_the_bytes_of_the_pictures_under_names_of_their_own(tmp_path):
    with open_door(tmp_path) as door:
        id_ = finish(door, {"prompt": "a boat", "num_images": 2, "seed": 3})
        chosen = [{"job": id_, "index": k} for k in (0, 1, 0)]
        answer = door.http.post("/v1/gallery/archive", json={"pictures": chosen})
        assert answer.headers["content-type"] == "application/zip"
        with zipfile.ZipFile(io.BytesIO(answer.content)) as file:
            assert file.testzip() is None
            names = file.namelist()
            assert [name.partition("-")[2][7:] for name in names] == [
                f"3-{id_[4:10]}-0.png", f"4-{id_[4:10]}-1.png",
            ]  # fmt: skip
            for index, name in enumerate(names):
                kept = door.http.get(f"/v1/jobs/{id_}/images/{index}").content
                assert file.read(name) == kept
        gone = {"pictures": [{"job": id_, "index": 5}]}
        assert door.http.post("/v1/gallery/archive", json=gone).status_code == 404
        assert door.http.post("/v1/gallery/archive", json={"pictures": []}).status_code == 422


@pytest.mark.parametrize("manages", [False, True])
def test_others_pictures_are_seen_by_managers_alone(tmp_path, manages):
    keys = tmp_path / "keys"
    scopes = "generate,manage" if manages else "generate"
    keys.write_text(f"{'a' * 24} ann generate\n{'b' * 24} bob {scopes}\n")
    keys.chmod(0o600)
    with open_door(tmp_path / "jobs", api_keys=str(keys)) as door:
        ann, bob = ({"authorization": f"Bearer {k * 24}"} for k in "ab")
        id_ = finish(door, {"prompt": "secret"}, **ann)
        listed = door.http.get("/v1/gallery/pictures", headers=bob).json()["pictures"]
        assert [p["job"] for p in listed] == ([id_] if manages else [])
        status = 200 if manages else 404
        path, chosen = f"/v1/jobs/{id_}/images/0/marks", {"pictures": [{"job": id_}]}
        assert door.http.put(path, json={"star": True}, headers=bob).status_code == status
        zipped = door.http.post("/v1/gallery/archive", json=chosen, headers=bob)
        assert zipped.status_code == status
