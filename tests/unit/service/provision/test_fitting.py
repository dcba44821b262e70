"""A model that cannot fit is refused before its weights are read, with what would help."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mezzotint.errors import WeightsError
from mezzotint.models.config import ModelsConfig
from mezzotint.models.families.gan import GanConfig, build_generator, load_gan, write_gan
from mezzotint.models.networks import TorchNetwork
from mezzotint.service.provision import model_provider
from mezzotint.service.provision.fitting import check_fits
from mezzotint.service.provision.model_provider import ModelProvider

GB = 10**9


def network(num_bytes, digest="", dtype=torch.float32):
    return TorchNetwork(
        lambda _: nn.Identity(), lambda m, i: (), num_bytes=num_bytes, digest=digest, dtype=dtype
    )


def test_networks_of_one_digest_count_once():
    vae = [network(3 * GB, "vae"), network(3 * GB, "vae")]
    check_fits("m", [network(5 * GB, "unet"), *vae], 8 * GB)
    with pytest.raises(WeightsError, match=r"weights take 8\.0 GB, and there are 7\.9 GB"):
        check_fits("m", [network(5 * GB, "unet"), *vae], 8 * GB - 10**8)


def test_weights_that_could_stay_on_disk_say_so():
    with pytest.raises(WeightsError, match="with offload disk its weights stay on disk, and it d"):
        check_fits("m", [network(30 * GB)], 8 * GB, can_map=True)


@pytest.mark.parametrize(
    ("sizes", "dtype", "can_offload", "advice"),
    [
        ((6, 3), torch.float32, False, r"; in bfloat16 it takes 4\.5 GB .*--dtype bfloat16"),
        ((6, 3), torch.bfloat16, False, "; it needs a machine, or a control group, with more"),
        ((30,), torch.float32, False, "; it needs a machine"),
        ((7, 7), torch.bfloat16, True, "; with models.placement.offload = model its parts"),
        ((30, 7), torch.bfloat16, True, "; with models.placement.offload = sequential"),
        ((6, 3), torch.float32, True, "bfloat16.*; or with models.placement.offload = model"),
    ],
)
def test_what_would_make_it_fit_is_said(sizes, dtype, can_offload, advice):
    networks = [network(size * GB, str(k), dtype) for k, size in enumerate(sizes)]
    with pytest.raises(WeightsError, match=advice):
        check_fits("big", networks, 8 * GB, can_offload=can_offload)


def test_what_says_no_size_fits():
    check_fits("m", [SimpleNamespace()], 0)


def test_nothing_is_read_of_a_model_that_does_not_fit(tmp_path, monkeypatch):
    config = GanConfig(latent_size=4, image_size=8, channels=(4,), licence="MIT")
    folder = write_gan(tmp_path / "gan", config, build_generator(config).state_dict())
    model = load_gan(folder, name="gan")
    provider = ModelProvider(ModelsConfig(home=str(tmp_path), backend="torch"), extra=[model])
    monkeypatch.setattr(model_provider, "memory_limit", lambda: 100)
    with (
        pytest.raises(WeightsError, match="model gan does not fit into memory"),
        provider.use("gan"),
    ):
        pass
    assert not model.networks["decoder"].is_built
    monkeypatch.setattr(model_provider, "memory_limit", lambda: GB)
    with provider.use("gan") as found:
        assert found is model
