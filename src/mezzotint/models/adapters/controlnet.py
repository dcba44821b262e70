"""ControlNet: pictures that steer a U-Net, for some rows of a call.

A ControlNet reads the noisy latents and a control picture and answers residuals,
which are added inside the U-Net. Every row brings its own pictures and scales, so
requests that differ in them share calls; a row whose scale is 0 is left out of the
ControlNet's call and gets residuals of exactly 0.

Dimensions: R rows, K ControlNets, H and W rows and columns of pixels, C, h and w
channels, rows and columns of a residual.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mezzotint.errors import CardError, InvalidRequest
from mezzotint.models.base import Model, Network
from mezzotint.models.families.sd import MID_RESIDUAL, RESIDUAL
from mezzotint.models.formats.folders import read_part
from mezzotint.models.networks import NetworkReady, Placement, TorchNetwork

__all__ = [
    "CONTROL_IMAGE",
    "CONTROL_SCALES",
    "ControlNet",
    "ControlledNetwork",
    "call_controlnet",
    "check_controlnet",
    "read_controlnet",
    "residual_shapes",
    "with_controlnets",
]

CONTROL_SCALES = "control_scales"
"""Name of the conditioning tensor with one scale per ControlNet, shape (R, K)."""

CONTROL_IMAGE = "control_image_"
"""Beginning of the names of the pictures, ``control_image_00``..., in [0, 1], (R, 3, H, W)."""

_PASSED = ("sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids")
_SHARED = (
    "cross_attention_dim",
    "in_channels",
    "block_out_channels",
    "down_block_types",
    "layers_per_block",
    "addition_embed_type",
    "projection_class_embeddings_input_dim",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlNet:
    """A ControlNet: its name, its content's digest and its network."""

    name: str
    digest: str
    config: Mapping[str, Any]
    network: Network


def call_controlnet(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call a ControlNetModel with named tensors; ``image`` is the control picture.

    Returns:
        The residuals of the down blocks in order, then that of the middle block.
    """
    added = {name: inputs[name] for name in ("text_embeds", "time_ids") if name in inputs}
    downs, middle = module(
        inputs["sample"],
        inputs["timestep"],
        encoder_hidden_states=inputs["encoder_hidden_states"],
        controlnet_cond=inputs["image"],
        conditioning_scale=1.0,
        added_cond_kwargs=added or None,
        return_dict=False,
    )
    return (*downs, middle)


def read_controlnet(path: Path, *, name: str, placement: Placement) -> ControlNet:
    """Read a diffusers ControlNet folder; weights come into memory at the first call.

    Args:
        path: Folder with ``config.json`` and safetensors weights.
        name: Name for messages.
        placement: Where and in which type it computes.

    Raises:
        CardError: If it is no ControlNet, or of a kind that cannot be used here.
        WeightsError: If weights are missing, corrupt or pickles.
    """
    part = read_part(path, "controlnet", library="diffusers", class_name="ControlNetModel")
    if part.config.get("global_pool_conditions"):
        raise CardError(
            f"ControlNet {name} pools its answers (global_pool_conditions), which is not offered"
        )
    network = TorchNetwork.of(part, call_controlnet, placement)
    network.field = "controls.model"
    return ControlNet(name=name, digest=part.digest, config=part.config, network=network)


def check_controlnet(control: ControlNet, model: Model, *, field: str = "controls.model") -> None:
    """Refuse a ControlNet that was made for another network.

    Args:
        control: The ControlNet.
        model: The model it is meant for.
        field: Request field to name.

    Raises:
        InvalidRequest: If it does not fit; names what differs.
    """
    unet = unet_config(model)
    for key in _SHARED:
        wanted, found = _plain(unet.get(key)), _plain(control.config.get(key))
        if key in control.config and key in unet and wanted != found:
            raise InvalidRequest(
                f"ControlNet {control.name} does not fit {model.spec.name}: its {key} is {found}, "
                f"the model's is {wanted}",
                field=field,
                value=control.name,
            )
    scale = 2 ** (len(control.config.get("conditioning_embedding_out_channels") or (0,) * 4) - 1)
    if scale != model.spec.latent_scale:
        raise InvalidRequest(
            f"ControlNet {control.name} does not fit {model.spec.name}: it reads {scale} px of its "
            f"picture per latent, the model draws {model.spec.latent_scale}",
            field=field,
            value=control.name,
        )


def unet_config(model: Model) -> Mapping[str, Any]:
    """Return the configuration of a model's denoiser, {} if it is not known."""
    network: Any = model.networks["denoiser"]
    while not hasattr(network, "config") and hasattr(network, "source"):
        network = network.source
    return getattr(network, "config", {})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def residual_shapes(
    config: Mapping[str, Any], rows: int, columns: int
) -> tuple[tuple[int, int, int], ...]:
    """Return the shapes (C, h, w) of a U-Net's down residuals, then that of its middle.

    Args:
        config: The U-Net's configuration.
        rows: Latent rows.
        columns: Latent columns.
    """
    widths = config["block_out_channels"]
    layers = config.get("layers_per_block", 2)
    counts = list(layers) if isinstance(layers, list | tuple) else [layers] * len(widths)
    shapes = [(int(widths[0]), rows, columns)]
    for level, (width, count) in enumerate(zip(widths, counts, strict=True)):
        shapes += [(int(width), rows, columns)] * int(count)
        if level < len(widths) - 1:
            rows, columns = -(-rows // 2), -(-columns // 2)
            shapes.append((int(width), rows, columns))
    return (*shapes, (int(widths[-1]), rows, columns))


class ControlledNetwork:
    """A U-Net with ControlNets beside it.

    Args:
        source: The U-Net, on any backend, with or without other adapters.
        networks: The model's networks, among which the ControlNets are looked up.
        roles: Their names there, in the order of the scales.
        config: The U-Net's configuration.
    """

    def __init__(
        self,
        source: Network,
        networks: Mapping[str, Network],
        roles: Sequence[str],
        config: Mapping[str, Any],
    ) -> None:
        self.source = source
        self._networks = networks
        self._roles = tuple(roles)
        self._config = config

    @property
    def notes(self) -> tuple[str, ...]:
        """What a backend could not take over."""
        return tuple(getattr(self.source, "notes", ()))

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Run ControlNets and U-Net once over all rows.

        ``control_scales`` (R, K) and ``control_image_00``... may differ per row.
        """
        scales = inputs.pop(CONTROL_SCALES)
        images = [inputs.pop(f"{CONTROL_IMAGE}{k:02d}") for k in range(len(self._roles))]
        sample = inputs["sample"]
        shapes = residual_shapes(self._config, *sample.shape[-2:])
        totals = [sample.new_zeros((len(sample), *s), dtype=torch.float32) for s in shapes]
        passed = {name: inputs[name] for name in _PASSED if name in inputs}
        for k, role in enumerate(self._roles):
            active = [row for row, scale in enumerate(scales[:, k].tolist()) if scale != 0]
            if not active:
                continue
            try:
                answers = _ask(self._networks[role], {**passed, "image": images[k]}, active)
            except NetworkReady:  # a rehearsal: the U-Net is to be made ready as well
                continue
            weights = scales[active, k].to(sample.device, torch.float32)[:, None, None, None]
            for total, answer in zip(totals, answers, strict=True):
                total[active] += answer * weights
        residuals = {f"{RESIDUAL}{k:02d}": total for k, total in enumerate(totals[:-1])}
        return self.source(**inputs, **residuals, **{MID_RESIDUAL: totals[-1]})


def _ask(
    network: Network, inputs: Mapping[str, Tensor], active: Sequence[int]
) -> tuple[Tensor, ...]:
    """Return the answers for some rows, in a call size whose bits are known to be right.

    The engine certifies the size of the whole call and the pair; so few rows are
    asked in pairs, and many all together.
    """
    count = len(next(iter(inputs.values())))
    if 2 * len(active) > count:
        answers = network(**inputs)
        return tuple(a[list(active)] for a in answers) if len(active) < count else answers
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, len(active), 2):
        rows = list(active[start : start + 2])
        pair = rows if len(rows) == 2 else rows * 2
        answers = network(**{name: tensor[pair] for name, tensor in inputs.items()})
        parts.append(tuple(a[: len(rows)] for a in answers))
    return tuple(torch.cat(answers) for answers in zip(*parts, strict=True))


def with_controlnets(model: Model, controls: Sequence[ControlNet]) -> Model:
    """Return a view of a model with ControlNets; the model itself stays as it is.

    The view shares every weight. Its conditionings have to carry
    :data:`CONTROL_SCALES` and the pictures.

    Args:
        model: The base model, or a view of it with other adapters.
        controls: The ControlNets, in the order of the scales.

    Raises:
        InvalidRequest: If the model is no U-Net over latents, or a ControlNet does not fit.
    """
    if model.spec.family not in ("sd", "sdxl"):
        raise InvalidRequest(
            f"controls cannot be honoured by {model.spec.name}: ControlNets are for families sd "
            f"and sdxl, it is {model.spec.family}",
            field="controls",
        )
    for control in controls:
        check_controlnet(control, model)
    view = copy.deepcopy(model)  # networks share themselves, see TorchNetwork.__deepcopy__
    roles = [f"controlnet_{k}" for k in range(len(controls))]
    view.networks.update({r: control.network for r, control in zip(roles, controls, strict=True)})
    source = view.networks["denoiser"]
    view.networks["denoiser"] = ControlledNetwork(source, view.networks, roles, unet_config(model))
    return view
