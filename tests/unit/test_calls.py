import io

from PIL import Image

from mezzotint.calls import read_call


def test_pictures_to_edit_may_be_paths_bytes_and_pil_pictures(tmp_path):
    stream = io.BytesIO()
    picture = Image.new("RGB", (8, 8), "red")
    picture.save(stream, "PNG")
    path = tmp_path / "red.png"
    path.write_bytes(stream.getvalue())
    request = read_call("blue", {"image_references": [path, str(path), stream.getvalue(), picture]})
    assert [p.data for p in request.image_references] == [stream.getvalue()] * 4
