"""Cards: what is known of a model before it is loaded, as TOML.

Adding a model of a known family is a card, not code::

    name = "plate"
    version = "1"
    path = "../builtin/plate"          # or: repo = "owner/name", revision = "<commit>"
    licence = "Apache-2.0"
    description = "Text to picture, 128 px, emoji-like."
    default_size = [128, 128]
    default_steps = 20

    [placement]
    dtype = "bfloat16"

    [sha256]
    "unet/diffusion_pytorch_model.safetensors" = "..."

What a card does not say is taken from the model's own files, and after that from
its family.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from mezzotint.errors import CardError, InvalidRequest
from mezzotint.files import digest_file, write_atomically
from mezzotint.models.config import read_placement
from mezzotint.models.reading import refuse_special
from mezzotint.models.spec import ModelSpec
from mezzotint.plain import check_range, convert, is_mapping
from mezzotint.types import Size

__all__ = [
    "CARDS_FOLDER",
    "Card",
    "apply_card",
    "builtin_cards",
    "card_from_plain",
    "card_to_toml",
    "describe_spec",
    "read_card",
    "request_defaults",
    "write_card",
]

CARDS_FOLDER = Path(__file__).parent / "cards"

_OVERRIDES = (
    "default_steps",
    "default_guidance_scale",
    "default_scheduler",
    "default_sigma_schedule",
    "min_size_px",
    "max_size_px",
    "licence",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A model's declaration; every field but ``name`` may be left to the files.

    Args:
        name: Name in the store.
        version: Version in the store, text.
        path: Folder or file, "" for a Hub model. Relative to the card's folder.
        repo: Hub id, "" for a local model.
        revision: Commit that is used of the Hub model, 40 hex digits.
        variant: ``"fp16"`` and the like, to insist on that set of weights.
        family: Family, for lists; the files decide.
        prediction_type: What the network predicts; overrides a scheduler
            configuration that says nothing or the wrong thing.
        latent_scale: Pixels per latent row, for lists.
        default_size: Width and height where a request says nothing.
        default_steps: Steps where a request says nothing.
        default_guidance_scale: Guidance where a request says nothing.
        default_scheduler: Scheduler where a request says nothing.
        default_sigma_schedule: Sigma schedule where a request says nothing.
        min_size_px: Smallest side.
        max_size_px: Largest side.
        licence: SPDX id or a sentence.
        description: A sentence for people.
        limits: Further things it cannot do.
        predictions: What TorchServe's ``/predictions`` answers where a request says nothing:
            the file of a picture, or nested lists of its pixels.
        placement: Its own placement options, as
            :func:`mezzotint.models.config.read_placement` takes them.
        sha256: Digest by path inside the folder (or by name, for one file).
    """

    name: str
    version: str = "1.0"
    path: str = ""
    repo: str = ""
    revision: str = ""
    variant: str | None = None
    family: str = ""
    prediction_type: str | None = None
    latent_scale: int | None = None
    default_size: tuple[int, ...] | None = None
    default_steps: int | None = None
    default_guidance_scale: float | None = None
    default_scheduler: str | None = None
    default_sigma_schedule: str | None = None
    min_size_px: int | None = None
    max_size_px: int | None = None
    licence: str | None = None
    description: str = ""
    limits: tuple[str, ...] = ()
    predictions: Literal["picture", "array"] | None = None
    placement: Mapping[str, Any] = field(default_factory=dict[str, Any])
    sha256: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        object.__setattr__(self, "placement", read_placement(self.placement))
        check_range("default_steps", self.default_steps, 1, 1000)
        check_range("default_guidance_scale", self.default_guidance_scale, 0, 1000)
        check_range("min_size_px", self.min_size_px, 1, 16_384)
        check_range("max_size_px", self.max_size_px, 1, 16_384)
        if self.default_size is not None:
            if len(self.default_size) != 2:
                raise InvalidRequest(
                    f"default_size must be [width, height], got {list(self.default_size)}",
                    field="default_size",
                )
            for side in self.default_size:
                check_range("default_size", side, 1, 16_384, unit=" px")


def read_card(path: Path) -> Card:
    """Read a card; a relative ``path`` in it becomes absolute.

    Raises:
        CardError: If the file is missing, is no TOML, or holds what a card has not.
        WeightsError: If it is a named pipe, a socket or a device.
    """
    path = Path(path)
    refuse_special(path)
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CardError(f"cannot read card {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CardError(f"card {path} is not TOML: {error}") from None
    card = card_from_plain(data, source=str(path))
    if card.path:
        card = replace(card, path=str((path.parent / card.path).resolve()))
    return card


def card_from_plain(data: Mapping[str, Any], *, source: str) -> Card:
    """Build a card from plain data, with errors that name where it came from."""
    values = dict(data)
    digests, placement = values.pop("sha256", {}), values.pop("placement", {})
    hints = {f.name: f.type for f in fields(Card)}
    try:
        if not is_mapping(digests):
            raise InvalidRequest("sha256 must be a table of file and digest")
        if not is_mapping(placement):
            raise InvalidRequest("placement must be a table of option and value")
        for key, value in values.items():
            if key not in hints:
                known = ", ".join(sorted(hints))
                raise InvalidRequest(f"unknown key {key!r}; a card has: {known}")
            values[key] = convert(value, hints[key], key)
        if not values.get("name"):
            raise InvalidRequest("name is needed")
        return Card(
            **values,
            placement={str(k): v for k, v in placement.items()},
            sha256={str(k): str(v) for k, v in digests.items()},
        )
    except InvalidRequest as error:
        raise CardError(f"card {source}: {error}") from None


def card_to_toml(card: Card) -> str:
    """Write a card as TOML; only what differs from the default."""
    lines: list[str] = []
    for f in fields(card):
        value = getattr(card, f.name)
        is_table = f.name in ("placement", "sha256")
        if is_table or value is None or value == () or (value == "" and f.name != "name"):
            continue
        # JSON texts, numbers and lists are TOML too.
        lines.append(f"{f.name} = {json.dumps(value, ensure_ascii=False)}")
    for name, table in (("placement", card.placement), ("sha256", card.sha256)):
        if table:
            lines += ["", f"[{name}]"]
            lines += [f"{json.dumps(k)} = {json.dumps(v)}" for k, v in sorted(table.items())]
    return "\n".join(lines) + "\n"


def write_card(path: Path, card: Card) -> None:
    """Write a card file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, card_to_toml(card).encode())


def apply_card(spec: ModelSpec, card: Card) -> ModelSpec:
    """Let a card's words override those of the files."""
    values = {name: getattr(card, name) for name in _OVERRIDES}
    changes: dict[str, Any] = {name: v for name, v in values.items() if v is not None}
    if card.default_size is not None:
        changes["default_size"] = Size(*card.default_size)
    if card.limits:
        changes["limits"] = (*spec.limits, *card.limits)
    if card.placement:
        changes["placement"] = card.placement
    return replace(spec, **changes)


@cache
def builtin_cards() -> Mapping[str, Card]:
    """Return the cards that come with the program, by name."""
    cards = (read_card(path) for path in sorted(CARDS_FOLDER.glob("*.toml")))
    return MappingProxyType({card.name: card for card in cards})


def measure_card(path: Path) -> Card:
    """Return a card with the digests of its folder as it is now.

    Weights, configurations and vocabularies are measured; texts for people are not.
    """
    card = read_card(path)
    root = Path(card.path)
    kept = (".json", ".safetensors", ".txt", ".model")
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.suffix in kept)
    digests = {p.relative_to(root).as_posix(): digest_file(p) for p in files}
    relative = tomllib.loads(path.read_text("utf-8")).get("path", "")
    return replace(card, path=relative, sha256=digests)


def main(arguments: list[str]) -> int:
    """Measure built-in models anew: ``python -m mezzotint.models.cards plate ...``."""
    for name in arguments:
        path = CARDS_FOLDER / f"{name}.toml"
        write_card(path, measure_card(path))
    return 0


def describe_spec(spec: ModelSpec) -> dict[str, Any]:
    """Return a spec as plain data, defaults under request field names."""
    return {
        "name": spec.name,
        "digest": spec.digest,
        "family": spec.family,
        "prediction_type": spec.prediction_type,
        "licence": spec.licence,
        "takes_prompt": spec.takes_prompt,
        "takes_negative_prompt": spec.takes_negative_prompt,
        "takes_image": spec.takes_image,
        "image_references": [spec.min_references, spec.max_references],
        "size_multiple": spec.size_multiple,
        "min_size_px": spec.min_size_px,
        "max_size_px": spec.max_size_px,
        "fixed_size": spec.fixed_size,
        "num_classes": spec.num_classes,
        "class_names": list(spec.class_names),
        "token_limit": spec.token_limit,
        "stepwise": spec.stepwise,
        "defaults": request_defaults(spec),
        "limits": [*spec.limits, *_told(spec)],
    }


def request_defaults(spec: ModelSpec) -> dict[str, Any]:
    """Return what a request means where it says nothing, by request field."""
    return {
        "width": spec.default_size.width,
        "height": spec.default_size.height,
        "num_inference_steps": spec.default_steps,
        "guidance_scale": spec.default_guidance_scale,
        "scheduler": spec.default_scheduler,
        "sigma_schedule": spec.default_sigma_schedule,
    }


def _told(spec: ModelSpec) -> list[str]:
    """Say which placement options are the model's own."""
    told = {name: str(value) for name, value in sorted(spec.placement.items())}
    options = ", ".join(f"{name} {value.lower()}" for name, value in told.items())
    return [f"placed by its card: {options}"] if options else []


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
