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


def test_help_shows_every_field_with_its_default_and_what_it_means():
    import dataclasses
    import inspect

    import mezzotint as mz

    names = {field.name for field in dataclasses.fields(mz.GenerationRequest)}
    for call in (mz.generate, mz.Client.generate, mz.AsyncClient.submit):
        assert names <= set(inspect.signature(call).parameters)
        assert "**fields" not in str(inspect.signature(call))
    shown = inspect.signature(mz.generate).parameters
    assert shown["num_images"].default == 1
    assert shown["num_images"].annotation is int
    assert "num_inference_steps: " in mz.generate.__doc__
    assert "1 to 1000" in mz.generate.__doc__
