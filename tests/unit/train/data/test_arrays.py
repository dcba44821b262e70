import numpy as np
import pytest
import torch
from tests.unit.train.making import points_config

from mezzotint.errors import InvalidRequest
from mezzotint.models.families.runs import Normalisation
from mezzotint.train.data.sources import load_data


def config_for(tmp_path, path, network, **data):
    return points_config(
        tmp_path,
        data={"path": str(path), **data},
        network={"kind": network, "channels": [8], "hidden": 8},
        loop={"batch_size": 2},
    )


def field(shape, seed=0):
    rng = np.random.default_rng(seed)
    scale = 10.0 ** np.arange(shape[1]).reshape(1, -1, *([1] * (len(shape) - 2)))
    return (rng.normal(size=shape) * scale + 5 * scale).astype(np.float32)


@pytest.mark.parametrize("suffix", ["npy", "npz", "zarr"])
@pytest.mark.parametrize(
    ("network", "shape"), [("mlp", (20, 3)), ("unet1d", (20, 2, 8)), ("unet2d", (20, 2, 4, 4))]
)
def test_any_array_is_normalised_by_its_own_statistics_and_back(tmp_path, suffix, network, shape):
    array = field(shape)
    path = tmp_path / f"data.{suffix}"
    if suffix == "npy":
        np.save(path, array)
    elif suffix == "npz":
        np.savez(path, array)
    else:
        import zarr

        zarr.save_array(str(path), array)
    data, report = load_data(config_for(tmp_path, path, network))
    samples = data.read([3, 0, 19, 3])
    flat = array.reshape(20, shape[1], -1)
    mean, deviation = flat.mean((0, 2)), flat.std((0, 2))
    assert data.normalisation.shift == pytest.approx(mean, rel=1e-5)
    assert data.normalisation.scale == pytest.approx(deviation, rel=1e-5)
    wide = (1, -1, *([1] * (len(shape) - 2)))
    wanted = (array[[3, 0, 19, 3]] - mean.reshape(wide)) / deviation.reshape(wide)
    np.testing.assert_allclose(samples.numpy(), wanted, atol=2e-5)
    np.testing.assert_allclose(
        data.normalisation.undo(samples).numpy(), array[[3, 0, 19, 3]], rtol=2e-5
    )
    assert report.count == 20


def test_series_and_fields_without_a_channel_axis_get_one(tmp_path):
    np.save(tmp_path / "a.npy", field((6, 8)))
    data, _ = load_data(config_for(tmp_path, tmp_path / "a.npy", "unet1d"))
    assert (data.shape, data.read([0, 1]).shape) == ((1, 8), (2, 1, 8))
    np.save(tmp_path / "b.npy", field((6, 4, 4)))
    data, _ = load_data(config_for(tmp_path, tmp_path / "b.npy", "unet2d"))
    assert data.shape == (1, 4, 4)


def test_range_normalisation_reaches_both_ends(tmp_path):
    np.save(tmp_path / "a.npy", field((50, 2)))
    config = config_for(tmp_path, tmp_path / "a.npy", "mlp", normalisation="range")
    data, _ = load_data(config)
    samples = data.read(range(50))
    assert samples.amin(0).tolist() == pytest.approx([-1, -1], abs=1e-5)
    assert samples.amax(0).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_without_normalisation_values_stay(tmp_path):
    array = field((10, 2))
    np.save(tmp_path / "a.npy", array)
    data, _ = load_data(config_for(tmp_path, tmp_path / "a.npy", "mlp", normalisation="none"))
    np.testing.assert_array_equal(data.read([4, 2]).numpy(), array[[4, 2]])


def test_a_constant_channel_is_reported_and_divides_by_nothing(tmp_path):
    array = field((10, 2))
    array[:, 1] = 3.0
    np.save(tmp_path / "a.npy", array)
    data, report = load_data(config_for(tmp_path, tmp_path / "a.npy", "mlp"))
    assert report.warnings == ("channel 1 is constant, it carries nothing to learn",)
    assert data.read([0])[0, 1] == 0


@pytest.mark.parametrize("value", [1e300, -1e39])
def test_a_value_beyond_float32_is_refused_by_its_sample(tmp_path, value):
    array = np.zeros((10, 2))
    array[3:, 1] = np.arange(7)
    array[6, 1] = value
    np.save(tmp_path / "a.npy", array)
    message = "values that are beyond float32: sample 6 is the first of 1;"
    with pytest.raises(InvalidRequest, match=message):
        load_data(config_for(tmp_path, tmp_path / "a.npy", "mlp"))


def test_equal_samples_and_classes_are_counted(tmp_path):
    array = field((10, 2))
    array[7] = array[2]
    np.savez(tmp_path / "a.npz", x=array, y=np.array([0, 1] * 5))
    config = config_for(tmp_path, tmp_path / "a.npz", "mlp", array="x", labels="y")
    data, report = load_data(config)
    assert report.duplicates == (("2", "7"),)
    assert report.classes == {"0": 5, "1": 5}
    assert data.class_names == ("0", "1")
    assert "duplicates: 1 (2, 7)" in report.lines()


def test_statistics_belong_to_rows_of_any_rank():
    norm = Normalisation(kind="standard", shift=(1.0, 2.0), scale=(2.0, 4.0))
    values = torch.ones(3, 2, 5)
    assert norm.apply(values)[:, 0].eq(0).all()
    assert norm.apply(values)[:, 1].eq(-0.25).all()
    assert torch.equal(norm.undo(norm.apply(values)), values)
    assert torch.equal(Normalisation().undo(values), values)


def test_classes_are_called_by_their_names(tmp_path):
    labels, names = np.array([0, 2, 2, 0, 1, 1]), np.array(["low", "middle", "high"])
    np.savez(tmp_path / "a.npz", values=field((6, 2)), labels=labels, names=names)
    options = {"array": "values", "labels": "labels", "class_names": "names"}
    data, report = load_data(config_for(tmp_path, tmp_path / "a.npz", "mlp", **options))
    assert data.class_names == ("low", "middle", "high")
    assert report.classes == {"low": 2, "middle": 2, "high": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "labels", "class_names": "few"}, "must be 3 texts, one for each class"),
        ({"channel_names": ["one"]}, "must name the 2 channels of the data, got 1"),
        ({"sample_rate": 8000}, "fractions of full scale"),
    ],
)
def test_names_and_sound_that_do_not_fit_the_data_are_refused(tmp_path, options, message):
    arrays = {"values": 40 * field((6, 2, 8)), "labels": np.arange(6) % 3}
    np.savez(tmp_path / "a.npz", few=np.array(["a", "b"]), **arrays)
    with pytest.raises(InvalidRequest, match=message):
        load_data(config_for(tmp_path, tmp_path / "a.npz", "unet1d", array="values", **options))
