"""Textual inversion: words whose vectors were learnt, for the prompts of one request.

A file holds one vector or several for each text encoder. Its token is looked for in
prompts before they are cut into words; its vectors take the place of the encoder's own
by a hook that exists only while one prompt is encoded. Neither tokenizer nor weights
are changed, so a request without the embedding cannot notice one before it.

Files of diffusers (one tensor under the token), of SDXL trainers (``clip_l`` and
``clip_g``) and of A1111 (``emb_params``, or a pickle with ``string_to_param``) are read.

Dimensions: N vectors, D width of an encoder, L tokens of a window.
"""

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mezzotint.errors import InvalidRequest, WeightsError
from mezzotint.models.adapters.torch_backed import TorchBacked, torch_backed
from mezzotint.models.base import Model, Network
from mezzotint.models.digests import DIGESTS
from mezzotint.models.parts import PICKLES, combine_digests, read_header

__all__ = [
    "EmbeddingNetwork",
    "EmbeddingWeights",
    "check_embedding",
    "read_embedding",
    "with_embeddings",
]

_ROLES = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_NAMELESS = ("emb_params", "*", "clip_l", "clip_g")
_FAMILIES = ("sd", "sdxl")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingWeights:
    """An embedding file: its content's digest, its token, its vectors by text encoder.

    ``token`` is None where the file names none; each of ``vectors`` has shape (N, D).
    """

    name: str
    digest: str
    token: str | None
    vectors: Mapping[str, Tensor] = field(repr=False)


def read_embedding(path: Path, *, name: str | None = None) -> EmbeddingWeights:
    """Read an embedding file.

    A pickle (``.pt``, ``.bin``) is read only if it names nothing but parts of tensors.

    Args:
        path: The file.
        name: Name for messages; the file's stem if None.

    Raises:
        WeightsError: If the file is missing, corrupt, unsafe, or no embedding.
    """
    name = name or path.stem
    token: str | None = None
    if path.suffix.lower() in PICKLES:
        from mezzotint.models.formats.checkpoint_scan import read_checkpoint

        digest = DIGESTS.digest(path)
        with DIGESTS.loading({path: digest}):
            state = read_checkpoint(path)
        if isinstance(state.get("string_to_param"), Mapping):
            named = state.get("name")
            token = named if isinstance(named, str) and named else None
            state = {"emb_params": state["string_to_param"].get("*")}
    else:
        read_header(path)
        digest = DIGESTS.digest(path)
        with DIGESTS.loading({path: digest}):
            state = {key: tensor.clone() for key, tensor in load_file(path).items()}
    vectors = _vectors(state, path)
    if token is None and len(state) == 1 and next(iter(state)) not in _NAMELESS:
        token = str(next(iter(state)))
    return EmbeddingWeights(name=name, digest=digest, token=token, vectors=vectors)


def _vectors(state: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the vectors by text encoder, each (N, D)."""
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    if set(tensors) == set(_ROLES):
        found = {_ROLES[key]: tensor for key, tensor in tensors.items()}
    elif len(tensors) == 1:
        found = {"text_encoder": next(iter(tensors.values()))}
    else:
        raise WeightsError(
            f"{path} is no textual inversion: expected one tensor, or clip_l and clip_g, "
            f"found {len(tensors)} tensors"
        )
    found = {role: (t[None] if t.ndim == 1 else t).float() for role, t in found.items()}
    for tensor in found.values():
        if tensor.ndim != 2 or not tensor.shape[0] or not bool(torch.isfinite(tensor).all()):
            raise WeightsError(
                f"{path} is no textual inversion: expected finite vectors of shape (N, D), "
                f"got {tuple(tensor.shape)}"
            )
    if len({tensor.shape[0] for tensor in found.values()}) > 1:
        raise WeightsError(f"{path}: its text encoders must have equally many vectors")
    return found


def check_embedding(
    weights: EmbeddingWeights, model: Model, *, field: str = "embeddings.name"
) -> None:
    """Refuse an embedding that was made for other text encoders.

    Raises:
        InvalidRequest: If it does not fit; names what differs.
    """
    encoders = [role for role in model.networks if role.startswith("text_encoder")]
    if sorted(weights.vectors) != sorted(encoders):
        raise InvalidRequest(
            f"embedding {weights.name} does not fit {model.spec.name}: it is for "
            f"{len(weights.vectors)} text encoders, the model has {len(encoders)}",
            field=field,
            value=weights.name,
        )
    for role, vectors in weights.vectors.items():
        network: Any = model.networks[role]
        config = getattr(network, "config", None) or getattr(
            getattr(network, "source", None), "config", {}
        )
        width = config.get("hidden_size") or config.get("d_model")
        if width is not None and vectors.shape[1] != width:
            raise InvalidRequest(
                f"embedding {weights.name} does not fit {model.spec.name}: its vectors have "
                f"{vectors.shape[1]} numbers, {role} reads {width}",
                field=field,
                value=weights.name,
            )


class EmbeddingNetwork:
    """A text encoder that knows further tokens while it runs.

    Args:
        source: The encoder without them; shared, never changed.
        vectors: Vectors of the further tokens. Shape (N, D).
        first: Id of the first of them; smaller ids are the encoder's own.
    """

    def __init__(self, source: TorchBacked, vectors: Tensor, first: int) -> None:
        self.source = source
        self._vectors = vectors
        self._first = first
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: object) -> "EmbeddingNetwork":
        """Return itself: a copy of a model shares its weights."""
        return self

    @property
    def module(self) -> nn.Module:
        """The module of the encoder without further tokens."""
        return self.source.module

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration of the encoder without further tokens."""
        return self.source.config

    @property
    def num_bytes(self) -> int:
        """Bytes of the vectors alone; the encoder counts for itself."""
        return 4 * self._vectors.numel()

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the encoder once; further tokens look like token 0 to all but their vectors."""
        ids = inputs["input_ids"]
        places = ids >= self._first
        owner = threading.get_ident()  # another thread may read with the same encoder

        def exchange(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            if threading.get_ident() != owner:
                return output
            chosen = self._vectors[(ids[places] - self._first).cpu()]
            output = output.clone()
            output[places.to(output.device)] = chosen.to(output)
            return output

        inputs["input_ids"] = torch.where(places, 0, ids)
        table: Any = self.module
        with self._lock:
            handle = table.get_input_embeddings().register_forward_hook(exchange)
            try:
                return self.source(**inputs)
            finally:
                handle.remove()


def with_embeddings(
    model: Model, embeddings: Sequence[EmbeddingWeights], tokens: Sequence[str]
) -> Model:
    """Return a view of a model that knows further words; the model itself stays as it is.

    Args:
        model: The base model; its text encoders must be able to run in torch.
        embeddings: The embeddings.
        tokens: The word of each.

    Raises:
        InvalidRequest: If the model is of another family, or an embedding does not fit.
    """
    if model.spec.family not in _FAMILIES:
        raise InvalidRequest(
            f"embeddings cannot be honoured by {model.spec.name}: textual inversions are for "
            f"families sd and sdxl, it is {model.spec.family}",
            field="embeddings",
        )
    for weights in embeddings:
        check_embedding(weights, model)
    view: Any = copy.deepcopy(model)  # networks share themselves, see TorchNetwork.__deepcopy__
    counts = {
        token: len(next(iter(weights.vectors.values())))
        for token, weights in zip(tokens, embeddings, strict=True)
    }
    for encoder in view.text_encoders:
        role = encoder.role
        encoder.tokens = encoder.tokens.with_words(counts)
        vectors = torch.cat([weights.vectors[role] for weights in embeddings])
        network: Network = view.networks[role]
        view.networks[role] = EmbeddingNetwork(
            torch_backed(network, "embeddings"), vectors, encoder.tokens.first_word
        )
    digests = {
        f"embedding {k} {token}": weights.digest
        for k, (token, weights) in enumerate(zip(tokens, embeddings, strict=True))
    }
    view.spec = replace(model.spec, digest=combine_digests({"model": model.spec.digest, **digests}))
    return view
