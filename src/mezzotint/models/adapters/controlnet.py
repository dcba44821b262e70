"""ControlNet: pictures that steer a denoiser, for some rows of a call.

A ControlNet reads the noisy latents and a control picture and answers residuals,
which are added inside the denoiser. Every row brings its own pictures and scales, so
requests that differ in them share calls; a row whose scale is 0 is left out of the
ControlNet's call and gets residuals of exactly 0. What a class of ControlNet reads and
answers says :mod:`mezzotint.models.adapters.control_kinds`.

Dimensions: R rows, K ControlNets, H and W rows and columns of pixels.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mezzotint.errors import CardError, InvalidRequest
from mezzotint.models.adapters.control_kinds import (
    CONTROL_KINDS,
    UNET_RESIDUALS,
    ControlKind,
    Residual,
)
from mezzotint.models.base import Model, Network
from mezzotint.models.formats.folders import read_part
from mezzotint.models.formats.packed_files import find_stored
from mezzotint.models.networks import NetworkReady, Placement, TorchNetwork, copy_layers
from mezzotint.models.parts import read_header, read_json
from mezzotint.types import Size

__all__ = [
    "CONTROL_GUESS",
    "CONTROL_GUIDANCE",
    "CONTROL_IMAGE",
    "CONTROL_MODE",
    "CONTROL_SCALES",
    "CONTROL_TEXT",
    "ControlNet",
    "ControlledNetwork",
    "check_controlnet",
    "denoiser_config",
    "read_controlnet",
    "with_controlnets",
]

CONTROL_SCALES = "control_scales"
"""Name of the conditioning tensor with one scale per ControlNet, shape (R, K)."""

CONTROL_IMAGE = "control_image_"
"""Beginning of the names of what ControlNets read of their pictures, ``control_image_00``...,
pixels (R, 3, H, W) or latents; see :meth:`~mezzotint.models.base.Model.encode_control`."""

CONTROL_MODE = "control_mode_"
"""Beginning of the names of a union ControlNet's modes, each of shape (R, 1), whole numbers."""

CONTROL_GUESS = "control_guess"
"""Name of the conditioning tensor that tells which ControlNets guess, shape (R, K), whole
numbers: 1 for a row with the prompt, -1 for one without, which they leave alone."""

CONTROL_GUIDANCE = "control_guidance"
"""Name of the conditioning tensor with the guidance scale of ControlNets that read one, shape
(R,), where the network of the model reads none."""

CONTROL_TEXT = "control_text_"
"""Beginning of the names of the prompt's own tensors, for ControlNets that read the prompt for
the unconditional half too."""

_UNION_WEIGHT = "task_embedding"  # what tells the weights of a ControlNetUnionModel
_POSITIONS = "control_positions"  # role of the denoiser's embedding, for ControlNets without one


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlNet:
    """A ControlNet: its name, its content's digest, its kind and its network."""

    name: str
    digest: str
    kind: ControlKind
    config: Mapping[str, Any]
    network: Network

    @property
    def num_modes(self) -> int:
        """What a union ControlNet tells apart: depth, edges, ...; 0 for one that does not."""
        said = self.config.get("num_mode") or self.config.get("num_control_type")
        return int(said or self.kind.modes)


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
    named = str(read_json(path / "config.json").get("_class_name") or "")
    class_name, wholes = named if named in CONTROL_KINDS else "ControlNetModel", ()
    if _UNION_WEIGHT in _weight_names(path):  # the first union's folder names another class
        class_name, wholes = "ControlNetUnionModel", (named,)
    part = read_part(path, "controlnet", library="diffusers", class_name=class_name, wholes=wholes)
    kind = CONTROL_KINDS[class_name]
    if reason := kind.refuse(part.config):
        raise CardError(f"ControlNet {name} {reason}")
    network = TorchNetwork.of(part, kind.call, placement)
    network.field = "controls.model"
    if kind.prepare is not None:
        network.change("attention", kind.prepare)
    network.fixes_sizes = kind.residuals is not UNET_RESIDUALS  # transformers' count tokens
    return ControlNet(name=name, digest=part.digest, kind=kind, config=part.config, network=network)


def _weight_names(path: Path) -> Collection[str]:
    """Return the names of a folder's weights, none where they are not safetensors."""
    files, _ = find_stored(path, library="diffusers")
    return {name for file in files if file.suffix != ".gguf" for name in read_header(file).tensors}


def check_controlnet(
    control: ControlNet,
    model: Model,
    *,
    mode: int | None = None,
    size: Size | None = None,
    field: str = "controls",
) -> None:
    """Refuse a ControlNet of another network, another mode or of smaller pictures.

    Args:
        control: The ControlNet.
        model: The model it is meant for.
        mode: What a union ControlNet is to follow.
        size: Of what is drawn.
        field: Request field of the control.

    Raises:
        InvalidRequest: If it does not fit; names what differs.
    """
    _check_fit(control, model, f"{field}.model")
    if size is not None:
        _check_size(control, model, size)
    count = control.num_modes
    if count and mode is None:
        raise InvalidRequest(
            f"{field}.mode is needed for {control.name}, a union of ControlNets: 0 to {count - 1}, "
            "which its card explains",
            field=f"{field}.mode",
            allowed=f"0 to {count - 1}",
        )
    if mode is not None and mode >= count:
        allowed = f"0 to {count - 1}" if count else "none"
        reason = f"at most {count - 1}" if count else "left out: it is no union of ControlNets"
        raise InvalidRequest(
            f"{field}.mode for {control.name} must be {reason}, got {mode}",
            field=f"{field}.mode",
            value=mode,
            allowed=allowed,
        )


def _check_size(control: ControlNet, model: Model, size: Size) -> None:
    """Refuse pictures that reach beyond the table of places of a ControlNet of SD 3."""
    known = control.config.get("pos_embed_max_size")
    if not known or not control.config.get("use_pos_embed", True):
        return
    most = int(known) * model.spec.size_multiple
    for field, side in (("width", size.width), ("height", size.height)):
        if side > most:
            raise InvalidRequest(
                f"{field} must be at most {most} px with ControlNet {control.name}, whose table "
                f"of places ends there, got {side}",
                field=field,
                value=side,
                allowed=f"at most {most}",
            )


def _check_fit(control: ControlNet, model: Model, field: str) -> None:
    """Refuse a ControlNet that was made for another network."""
    if reason := _misfit(control, model):
        raise InvalidRequest(
            f"ControlNet {control.name} does not fit {model.spec.name}: {reason}",
            field=field,
            value=control.name,
        )


def _misfit(control: ControlNet, model: Model) -> str:
    """Tell what of a ControlNet does not fit a model, or ""."""
    families = control.kind.families
    if model.spec.family not in families:
        return f"it is for families {' and '.join(families)}, the model is {model.spec.family}"
    config = denoiser_config(model)
    for key in control.kind.shared:
        wanted, found = _plain(config.get(key)), _plain(control.config.get(key))
        if key in control.config and key in config and wanted != found:
            return f"its {key} is {found}, the model's is {wanted}"
    if control.kind.reads_latents(control.config):
        return ""
    levels = control.config.get("conditioning_embedding_out_channels") or (0,) * 4
    scale = 2 ** (len(levels) - 1)
    if scale == model.spec.latent_scale:
        return ""
    return (
        f"it reads {scale} px of its picture per latent, the model draws {model.spec.latent_scale}"
    )


def denoiser_config(model: Model) -> Mapping[str, Any]:
    """Return the configuration of a model's denoiser, {} if it is not known."""
    network: Any = model.networks.get("denoiser")
    while not hasattr(network, "config") and hasattr(network, "source"):
        network = network.source
    return getattr(network, "config", {})


def _plain(value: Any) -> Any:
    return list(cast("Sequence[Any]", value)) if isinstance(value, list | tuple) else value


class ControlledNetwork:
    """A denoiser with ControlNets beside it.

    Args:
        source: The denoiser, on any backend, with or without other adapters.
        networks: The model's networks, among which the ControlNets are looked up.
        controls: The ControlNets, in the order of the scales.
        roles: Their names among the networks.
        config: The denoiser's configuration.
    """

    def __init__(
        self,
        source: Network,
        networks: Mapping[str, Network],
        controls: Sequence[ControlNet],
        roles: Sequence[str],
        config: Mapping[str, Any],
    ) -> None:
        self.source = source
        self._networks = networks
        self._controls = tuple(controls)
        self._roles = tuple(roles)
        self._config = config

    @property
    def notes(self) -> tuple[str, ...]:
        """What a backend could not take over."""
        return tuple(getattr(self.source, "notes", ()))

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Run ControlNets and denoiser once over all rows.

        ``control_scales`` (R, K) and ``control_image_00``... may differ per row.
        """
        own = {name: inputs.pop(name) for name in list(inputs) if name.startswith("control_")}
        scales, guess = own[CONTROL_SCALES], own.get(CONTROL_GUESS)
        if guess is not None:
            scales = scales * (guess >= 0)
        sample = inputs["sample"]
        residuals = self._residuals(sample)
        totals = [sample.new_zeros((len(sample), *r.shape), dtype=torch.float32) for r in residuals]
        for k, role in enumerate(self._roles):
            active: list[int] = np.flatnonzero(scales[:, k].cpu().numpy()).tolist()
            if not active:
                continue
            try:
                answers = _ask(self._networks[role], self._read(k, inputs, own), active)
            except NetworkReady:  # a rehearsal: the denoiser is to be made ready as well
                continue
            weights = _weights(
                scales[active, k], None if guess is None else guess[active, k], len(answers)
            )
            for total, residual in zip(totals, residuals, strict=True):
                place = residual.sources[k]
                if place is not None:
                    weight = weights[place].to(sample.device)
                    total[active] += answers[place] * weight.reshape(-1, *[1] * len(residual.shape))
        added = {
            name: total
            for residual, total in zip(residuals, totals, strict=True)
            for name in residual.names
        }
        return self.source(**inputs, **added)

    def _residuals(self, sample: Tensor) -> list[Residual]:
        """Return what is added to rows of this size."""
        configs = [control.config for control in self._controls]
        rows, columns = (int(side) for side in sample.shape[-2:])
        return self._controls[0].kind.residuals(configs, self._config, rows, columns)

    def _read(
        self, k: int, inputs: Mapping[str, Tensor], own: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return what a ControlNet reads."""
        control = self._controls[k]
        read = {name: inputs[name] for name in control.kind.passed if name in inputs}
        read |= {name: own[CONTROL_TEXT + name] for name in read if CONTROL_TEXT + name in own}
        read["image"] = own[f"{CONTROL_IMAGE}{k:02d}"]
        if CONTROL_GUIDANCE in own:
            read["guidance"] = own[CONTROL_GUIDANCE]
        if control.num_modes:
            read["mode"] = own[f"{CONTROL_MODE}{k:02d}"]
        if not control.config.get("use_pos_embed", True):
            (read["sample"],) = self._networks[_POSITIONS](sample=read["sample"])
        return read


def _weights(scales: Tensor, guess: Tensor | None, count: int) -> list[Tensor]:
    """Return what each answer counts, (rows,) each; less towards the picture's edge in guess mode.

    Source: ``guess_mode`` of diffusers' ControlNetModel: from a tenth to one, even in logarithm.
    """
    plain = scales.to(torch.float32)
    if guess is None:
        return [plain] * count
    shares = torch.logspace(-1, 0, count)
    return [plain * torch.where(guess > 0, share, 1.0) for share in shares.to(plain.device)]


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
    :data:`CONTROL_SCALES` and what
    :meth:`~mezzotint.models.base.Model.encode_control` makes of the pictures.

    Args:
        model: The base model, or a view of it with other adapters.
        controls: The ControlNets, in the order of the scales.

    Raises:
        InvalidRequest: If a ControlNet does not fit the model.
    """
    for control in controls:
        _check_fit(control, model, "controls.model")
    view = copy.deepcopy(model)  # networks share themselves, see TorchNetwork.__deepcopy__
    roles = [f"controlnet_{k}" for k in range(len(controls))]
    view.networks.update({r: control.network for r, control in zip(roles, controls, strict=True)})
    source = view.networks["denoiser"]
    if any(not control.config.get("use_pos_embed", True) for control in controls):
        view.networks[_POSITIONS] = _positions(source)
    view.networks["denoiser"] = ControlledNetwork(
        source, view.networks, controls, roles, denoiser_config(model)
    )
    view.control_reads = controls[0].kind.prompt_only

    def encode(index: int, picture: Tensor | None, size: Size) -> Tensor:
        control = controls[index]
        return control.kind.encode(control.config, view, picture, size)

    view.encode_control = encode  # type: ignore[method-assign]
    return view


def _positions(network: Any) -> TorchNetwork:
    """Return the part of a denoiser that makes tokens of latents, as a network."""
    while not isinstance(network, TorchNetwork):
        network = network.source
    base: TorchNetwork = network

    def build(_: torch.dtype) -> nn.Module:
        part: Any = base.module.pos_embed
        return copy_layers(part, share_weights=base.offload is None)

    return TorchNetwork(
        build,
        lambda module, inputs: (module(inputs["sample"]),),
        dtype=base.dtype,
        device=base.device,
    )
