import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from tests.unit.train.making import picture_config, save_pictures

from mezzotint.errors import InvalidRequest
from mezzotint.train.data.pictures import bucket_sizes
from mezzotint.train.data.sources import load_data
from mezzotint.types import Size


def png(width=16, height=16, level=0):
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (level, 0, 255)).save(stream, "PNG")
    return stream.getvalue()


def test_a_folder_is_read_with_sidecar_captions(tmp_path):
    data, report = load_data(picture_config(tmp_path))
    assert data.shape == (3, 16, 16)
    assert data.captions[1] == "a green square"
    assert (report.count, report.captions, report.sizes) == (12, 12, {"16x16": 12})
    samples = data.read([1])
    assert samples[0, :, 8, 8].tolist() == [-1, 1, -1]


def test_metadata_wins_over_sidecars_and_gives_labels(tmp_path):
    folder = save_pictures(tmp_path / "p")
    lines = [
        json.dumps({"file_name": f"{k:03}.png", "text": f"t{k}", "kind": k % 2}) for k in range(12)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    config = picture_config(tmp_path, data={"path": str(folder), "label_column": "kind"})
    data, report = load_data(config)
    assert data.captions[:2] == ["t0", "t1"]
    assert data.labels[:3] == [0, 1, 0]
    assert report.classes == {"0": 6, "1": 6}


def test_captions_may_hold_any_line_separator_and_a_byte_order_mark(tmp_path):
    folder = save_pictures(tmp_path / "p", count=2, captions=False)
    line = json.dumps({"file_name": "000.png", "text": "red\u2028apple"}, ensure_ascii=False)
    (folder / "metadata.jsonl").write_bytes(line.encode("utf-8-sig") + b"\r\n")
    (folder / "001.txt").write_bytes("grün".encode("utf-8-sig"))
    data, _ = load_data(
        picture_config(tmp_path, data={"path": str(folder)}, loop={"batch_size": 2})
    )
    assert data.captions == ["red\u2028apple", "grün"]


@pytest.mark.parametrize("name", ["001.txt", "metadata.jsonl"])
def test_a_text_that_is_no_utf_8_is_named(tmp_path, name):
    folder = save_pictures(tmp_path / "p", count=2, captions=False)
    (folder / name).write_bytes("grün".encode("latin-1"))
    with pytest.raises(InvalidRequest, match=rf"no UTF-8: {name}, byte 2"):
        load_data(picture_config(tmp_path, data={"path": str(folder)}))


def test_class_folders_name_the_classes(tmp_path):
    for name in ("cat", "dog"):
        save_pictures(tmp_path / "by_class" / name, count=4, captions=False)
    config = picture_config(
        tmp_path, data={"path": str(tmp_path / "by_class")}, conditioning={"kind": "class"}
    )
    data, report = load_data(config)
    assert data.class_names == ("cat", "dog")
    assert data.labels == [0] * 4 + [1] * 4
    assert report.duplicates[0] == ("cat/000.png", "dog/000.png")


def test_parquet_rows_are_read_as_bytes_or_as_a_struct(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    rows = [png(level=k) for k in range(6)]
    texts = [f"level {k}" for k in range(6)]
    plain = pa.table({"image": rows, "text": texts})
    struct = pa.table({"image": [{"bytes": r, "path": None} for r in rows], "text": texts})
    for name, table in (("a.parquet", plain), ("b.parquet", struct)):
        parquet.write_table(table, tmp_path / name)
        data, report = load_data(picture_config(tmp_path, data={"path": str(tmp_path / name)}))
        assert (report.count, data.captions[4]) == (6, "level 4")
        assert data.read([4])[0, 0, 0, 0].item() == pytest.approx(4 / 127.5 - 1)
    config = picture_config(
        tmp_path, data={"path": str(tmp_path / "a.parquet"), "image_column": "photo"}
    )
    with pytest.raises(InvalidRequest, match=r"photo is not in a\.parquet, which has image, text"):
        load_data(config)


def test_tar_shards_group_files_by_key(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for shard in range(2):
        with tarfile.open(shards / f"{shard:04}.tar", "w") as archive:
            for k in range(3):
                for suffix, data in (
                    ("png", png(level=10 * shard + k)),
                    ("txt", f"picture {shard} {k}".encode()),
                    ("cls", str(k).encode()),
                ):
                    entry = tarfile.TarInfo(f"sample{k:03}.{suffix}")
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
    config = picture_config(tmp_path, data={"path": str(shards)}, conditioning={"kind": "class"})
    data, report = load_data(config)
    assert report.count == 6
    assert data.captions[5] == "picture 1 2"
    assert data.labels == [0, 1, 2, 0, 1, 2]
    assert data.read([5])[0, 0, 0, 0].item() == pytest.approx(12 / 127.5 - 1)


def test_broken_pictures_are_named_or_left_out(tmp_path):
    folder = save_pictures(tmp_path / "p")
    (folder / "005.png").write_bytes(png()[:60])
    (folder / "007.jpg").write_bytes(b"not a picture")
    with pytest.raises(InvalidRequest, match=r"2 broken pictures: 005\.png") as caught:
        load_data(picture_config(tmp_path, data={"path": str(folder)}))
    assert "; 007.jpg: must be a picture of a known format" in str(caught.value)
    config = picture_config(tmp_path, data={"path": str(folder), "on_broken": "skip"})
    _, report = load_data(config)
    assert report.count == 11
    assert [text.split(":")[0] for text in report.broken] == ["005.png", "007.jpg"]


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequest, match="holds no pictures"):
        load_data(picture_config(tmp_path, data={"path": str(tmp_path / "empty")}))


def test_mixed_sizes_are_refused_unless_told_what_to_do(tmp_path):
    folder = save_pictures(tmp_path / "p", captions=False)
    (folder / "wide.png").write_bytes(png(64, 32, level=200))
    with pytest.raises(InvalidRequest, match=r"mixed sizes: 1 of 13 .* wide\.png with 64x32"):
        load_data(picture_config(tmp_path, data={"path": str(folder)}))
    with pytest.raises(InvalidRequest, match="other sizes than resolution: 13 of 13 are not 17x17"):
        load_data(picture_config(tmp_path, data={"path": str(folder), "resolution": 17}))
    for fit in ("crop", "pad"):
        data, _ = load_data(picture_config(tmp_path, data={"path": str(folder), "fit": fit}))
        assert data.read([12]).shape == (1, 3, 16, 16)
    corner = data.read([12])[0, :, 0, 0]
    assert corner.tolist() == [1, 1, 1]  # padded with white


def test_buckets_keep_the_aspect(tmp_path):
    folder = save_pictures(tmp_path / "p", captions=False)
    for k in range(4):
        (folder / f"wide{k}.png").write_bytes(png(64, 32, level=k))
    config = picture_config(
        tmp_path,
        data={"path": str(folder), "fit": "buckets", "resolution": 16, "bucket_multiple": 4},
    )
    data, _ = load_data(config)
    assert data.read([0]).shape == (1, 3, 16, 16)
    wide = data.read([12])
    assert wide.shape[3] > wide.shape[2]
    assert data.shape == (3, 16, 16)
    for size in bucket_sizes(512, 64):
        assert size.width % 64 == size.height % 64 == 0
        assert 0.7 < size.width * size.height / 512**2 <= 1.0
    assert bucket_sizes(512, 64)[0] == Size(512, 512)


def test_grey_pictures_have_one_channel(tmp_path):
    data, _ = load_data(picture_config(tmp_path, data={"channels": 1}))
    assert data.read([0, 1]).shape == (2, 1, 16, 16)


def test_pictures_beyond_the_memory_limit_are_read_again(tmp_path):
    kept, _ = load_data(picture_config(tmp_path))
    again, _ = load_data(picture_config(tmp_path, data={"cache_mb": 0}))
    assert np.array_equal(kept.read([5, 2]), again.read([5, 2]))
