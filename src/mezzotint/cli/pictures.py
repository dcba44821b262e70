"""The verbs ``replay``, ``verify`` and ``inspect``: what a picture says about itself."""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mezzotint.cli.delivery import Delivery, deliver
from mezzotint.cli.flags import WrongFlag
from mezzotint.cli.outputs import Destination
from mezzotint.cli.session import load_settings, run
from mezzotint.cli.terminal import escaped
from mezzotint.errors import MezzotintError, WorkFailed
from mezzotint.request import GenerationRequest
from mezzotint.settings import Settings
from mezzotint.types import ImageOutput
from mezzotint.vocabulary import LEAST_DB

__all__ = ["inspect", "replay", "verify"]

IDENTICAL, DIFFERENT, NO_RECIPE = 0, 1, 2
_BLOCK_PX = 16

Picture = Annotated[Path, typer.Argument(metavar="PICTURE", help="PNG, JPEG or WebP.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AllowDownload = Annotated[
    bool,
    typer.Option("--allow-download", help="Fetch a model that the picture names by its Hub id."),
]
ORIGIN = "a recipe proves how the picture is made, not who made it"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How a picture differs from the one its recipe makes here.

    Args:
        differing_pixels: Pixels that differ in any channel; None where the sizes do.
        pixels: Pixels of the picture.
        largest_difference: In levels of 255.
        environment: ``name -> (then, now)`` of what differs.
        decibels: Ratio of peak to noise; None where nothing differs or the sizes do.
        promised_decibels: What the picture's tier promises; None for ``exact``.
        worst_block: ``(x, y, decibels)`` of the 16x16 px that differ most where some differ
            by more than the tier promises; None where all are as near.
        file: What the file holds that is neither the picture nor its recipe, or lacks; one
            sentence each.
    """

    differing_pixels: int | None
    pixels: int
    largest_difference: int
    environment: Mapping[str, tuple[Any, Any]]
    decibels: float | None = None
    promised_decibels: float | None = None
    worst_block: tuple[int, int, float] | None = None
    file: tuple[str, ...] = ()

    @property
    def same_pixels(self) -> bool:
        """Whether every pixel is the same."""
        return self.differing_pixels == 0

    @property
    def other_weights(self) -> tuple[str, ...]:
        """Digests of weights that the recipe claims and that are not those it ran with here."""
        return tuple(name for name in self.environment if name.endswith("digest"))

    @property
    def is_identical(self) -> bool:
        """Whether the file is the one that its recipe makes, byte for byte."""
        return self.same_pixels and not self.file and not self.other_weights

    @property
    def keeps_promise(self) -> bool:
        """Whether the file is its recipe's, and its pixels as near as their tier promises.

        ``exact`` promises every pixel; the other tiers promise decibels, which every 16x16 px
        have to keep, or a part could be painted over within what the whole may differ.
        """
        if self.file or self.other_weights or self.promised_decibels is None:
            return self.is_identical
        if self.same_pixels:
            return True
        near = self.decibels is not None and self.decibels >= self.promised_decibels
        return near and self.worst_block is None


def replay(
    context: typer.Context,
    picture: Picture,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; - is stdout.")
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="Folder for the picture without -o.")] = Path(
        "outputs"
    ),
    allow_download: AllowDownload = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Read the recipe inside a picture and make it again."""
    recipe = _recipe(picture)
    request = _request(recipe)
    destination = Destination(output, output_dir)
    settings = _settings(context, allow_download=allow_download)
    image = _make_again(settings, recipe, request, quiet=quiet)
    path = destination.write(image, request)
    if as_json:
        print(json.dumps({"path": str(path), "seed": image.seed}))
    elif path is not None:
        print(path)


def verify(
    context: typer.Context,
    picture: Picture,
    *,
    trusted: Annotated[
        list[Path] | None,
        typer.Option(help="File of public keys whose signatures are known; may be repeated."),
    ] = None,
    allow_download: AllowDownload = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> int:
    """Make a picture again and compare; exits 0 identical, 1 different, 2 no recipe.

    The whole file counts: what is in it beside the picture and its recipe is named. A picture
    of the tier stable or turbo exits 0 where it is as near as the tier promises, everywhere.
    A signature tells who made it; one that does not fit the file exits 1.
    """
    from mezzotint.images.signing import check_signature, read_trusted_keys, split_signature

    recipe = _recipe(picture)
    request = _request(recipe)
    settings = _settings(context, allow_download=allow_download)
    image = _make_again(settings, recipe, request, quiet=quiet)
    data = _read(picture)
    files = [*map(Path, settings.images.trusted_keys), *(trusted or ())]
    names = {key: name for file in files for key, name in read_trusted_keys(file).items()}
    signature = check_signature(data, names)
    found = compare(split_signature(data)[0], image, recipe)
    is_good = found.keeps_promise and signature.status != "broken"
    if as_json:
        kept: dict[str, Any] = {
            "identical": found.is_identical,
            "keeps_promise": found.keeps_promise,
            "same_pixels": found.same_pixels,
        }
        kept["signature"] = signature._asdict()
        print(json.dumps({**kept, **dataclasses.asdict(found)}))
    else:
        _print_comparison(found)
        print(_origin(signature))
    return IDENTICAL if is_good else DIFFERENT


def inspect(
    context: typer.Context,
    picture: Picture,
    request: Annotated[
        bool, typer.Option("--request", help="Print the nearest request that can be run.")
    ] = False,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Show how the model cuts the prompt.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Print the recipe of a picture: ours, A1111, ComfyUI, InvokeAI, Fooocus."""
    from mezzotint.images.metadata import read_recipe
    from mezzotint.images.readers import read_foreign
    from mezzotint.models.store.store import ModelStore

    data = _read(picture)
    store = ModelStore(_settings(context, allow_download=False).models)
    recipe = read_recipe(data)
    if recipe is not None:
        nearest, lost = _request(recipe), ()
        shown: dict[str, Any] = {"generator": "Mezzotint", **recipe}
    else:
        foreign = read_foreign(data, known_models=store.names())
        if foreign is None:
            print(f"mezzotint: {escaped(picture)} carries no recipe", file=sys.stderr)
            return NO_RECIPE
        nearest, lost = foreign.request, foreign.not_honoured
        shown = {
            "generator": foreign.generator,
            "prompt": foreign.prompt,
            "negative_prompt": foreign.negative_prompt,
            "parameters": dict(foreign.parameters),
        }
    if request:
        shown = nearest.to_dict()
        for sentence in () if as_json else lost:
            print(f"not honoured: {escaped(sentence)}", file=sys.stderr)
        if as_json:
            shown = {"request": shown, "not_honoured": list(lost)}
    elif lost:
        shown["not_honoured"] = list(lost)
    if tokens:
        shown["tokens"] = count_tokens(store, nearest)
    if as_json or request:
        print(_json(shown, indent=None if as_json else 2))
    else:
        _print_recipe(shown)
    return 0


def compare(data: bytes, image: ImageOutput, recipe: Mapping[str, Any]) -> Comparison:
    """Compare a picture with the one that was made again from its recipe."""
    import numpy as np

    from mezzotint.images.canonical import program_of

    before, now = _decode(data, image), _decode(image.data, image)
    environment = _differences(recipe.get("environment", {}), image.recipe.get("environment", {}))
    programs = program_of(data), program_of(image.data)
    if programs[0] != programs[1]:
        environment["program"] = programs
    pixels = before.shape[0] * before.shape[1]
    if before.shape != now.shape:
        return Comparison(
            differing_pixels=None, pixels=pixels, largest_difference=255, environment=environment
        )
    distance = np.abs(before.astype(np.int16) - now.astype(np.int16))
    noise = float(np.mean(distance.astype(np.float64) ** 2))
    promised = LEAST_DB.get(str(recipe.get("request", {}).get("reproducibility", "exact")))
    return Comparison(
        differing_pixels=int((distance.max(axis=-1) > 0).sum()),
        pixels=pixels,
        largest_difference=int(distance.max()),
        environment=environment,
        decibels=_decibels(noise),
        promised_decibels=promised,
        worst_block=None if promised is None else _worst_block(distance, promised),
        file=_file_differences(data, image, recipe, same_pixels=not distance.any()),
    )


def _decibels(noise: float) -> float | None:
    """Return the ratio of peak to a mean squared difference; None where there is none."""
    return round(10 * math.log10(255**2 / noise), 1) if noise else None


def _worst_block(distance: Any, promised: float) -> tuple[int, int, float] | None:
    """Find the 16x16 px that differ most, if by more than is promised.

    Args:
        distance: Shape (H, W, C), in levels.
        promised: Decibels.

    Returns:
        Left and upper edge in pixels, and the decibels there.
    """
    import numpy as np

    rows, columns = (range(0, side, _BLOCK_PX) for side in distance.shape[:2])
    noise = np.mean(distance.astype(np.float64) ** 2, axis=-1)
    sums = np.add.reduceat(np.add.reduceat(noise, rows, axis=0), columns, axis=1)
    counts = np.add.reduceat(np.add.reduceat(np.ones_like(noise), rows, axis=0), columns, axis=1)
    means = sums / counts
    row, column = np.unravel_index(int(means.argmax()), means.shape)
    worst = _decibels(float(means[row, column]))
    if worst is None or worst >= promised:
        return None
    return int(column) * _BLOCK_PX, int(row) * _BLOCK_PX, worst


def _file_differences(
    data: bytes, image: ImageOutput, recipe: Mapping[str, Any], *, same_pixels: bool
) -> tuple[str, ...]:
    """Name what a file holds beside its picture and recipe, or lacks."""
    from mezzotint.images.canonical import canonical_file, name_differences
    from mezzotint.images.codec import decode_image
    from mezzotint.images.png import encode_png
    from mezzotint.textchunks import read_texts

    made = image.data
    if data == made:
        return ()
    can_encode = not same_pixels and image.format == "png" and image.frames == 1
    if can_encode:  # its own pixels, written as we write them: nothing may hide among them
        made = encode_png(decode_image(data), read_texts(made))
    canonical = canonical_file(data, recipe, made)
    return name_differences(data, canonical, pixels_too=same_pixels or can_encode)


def _decode(data: bytes, image: ImageOutput) -> Any:
    """Return the pixels of a file like ``image``; the frames of an animation under each other."""
    import numpy as np

    from mezzotint.images.animation import decode_frames
    from mezzotint.images.codec import decode_image

    if image.format == "mp4":  # not decoded here: its bytes are compared
        return np.frombuffer(data, np.uint8)[:, None, None]
    return np.concatenate(decode_frames(data)) if image.frames > 1 else decode_image(data)


def count_tokens(store: Any, request: GenerationRequest) -> dict[str, Any]:
    """Show how each tokenizer of a request's model cuts and weighs its texts."""
    from mezzotint.models.prompts import load_tokens

    folder = store.entry(request.model).path
    words = _words(store, request)
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("tokenizer*")) if folder.is_dir() else ():
        tokens = load_tokens(path)
        tokens = tokens.with_words(words) if words else tokens
        for name in ("prompt", "negative_prompt"):
            stages = _stages(getattr(request, name), request)
            cut = {until: _cut(tokens, text, request) for until, text in stages if text}
            if len(stages) == 1:
                cut = cut.get(stages[0][0])
            else:
                cut = {f"until step {until}": one for until, one in cut.items()}
            if cut:
                found.setdefault(path.name, {})[name] = cut
    return found


def _stages(text: str, request: GenerationRequest) -> list[tuple[int, str]]:
    """Return the texts that a prompt becomes on its way, and until which step each holds."""
    from mezzotint.models.prompt_editing import edits

    steps = request.num_inference_steps or 0
    if request.prompt_dialect != "a1111" or not steps:
        return [(steps, text)]
    return [(edit.until_step, edit.text) for edit in edits(text, steps)]


def _cut(tokens: Any, text: str, request: GenerationRequest) -> dict[str, Any]:
    """Return how one text is cut and weighed."""
    chunks, notes = tokens.split(text, request.prompt_dialect)
    return {
        "count": tokens.count(text),
        "window": tokens.window,
        "chunks": [_spelt(tokens, chunk) for chunk in chunks],
        "notes": list(notes),
    }


def _words(store: Any, request: GenerationRequest) -> dict[str, int]:
    """Return the words of a request's textual inversions and the tokens each becomes."""
    from mezzotint.models.adapters.textual_inversion import read_embedding
    from mezzotint.service.provision.adapters import AdapterProvider

    if not request.embeddings:
        return {}
    config = store.config
    adapters = AdapterProvider(config.home_path, allow_paths=config.allow_paths)
    found: dict[str, int] = {}
    for embedding in request.embeddings:
        weights = read_embedding(adapters.path("embedding", embedding.name))
        word = embedding.token or adapters.token(embedding.name)
        found[word] = len(next(iter(weights.vectors.values())))
    return found


def _spelt(tokens: Any, chunk: Any) -> list[list[Any]]:
    """Return each token of a window with its weight; start, end and filling left out."""
    outer = {*tokens.start, *tokens.end, tokens.pad}
    triples = zip(chunk.ids, chunk.mask, chunk.weights, strict=True)
    return [[tokens.spell(t), round(w, 4)] for t, m, w in triples if m and t not in outer]


def _read(picture: Path) -> bytes:
    try:
        return picture.read_bytes()
    except OSError as error:
        raise WrongFlag("PICTURE", f"cannot read {picture}: {error.strerror}") from None


def _settings(context: typer.Context, *, allow_download: bool) -> Settings:
    """Read the settings; what a stranger's picture names is fetched only if that was asked for."""
    settings = load_settings(context).settings
    models = settings.models
    allowed = allow_download and models.allow_downloads
    return dataclasses.replace(
        settings, models=dataclasses.replace(models, allow_downloads=allowed)
    )


def _recipe(picture: Path) -> Mapping[str, Any]:
    """Read our recipe from a picture."""
    from mezzotint.images.metadata import read_recipe

    recipe = read_recipe(_read(picture))
    if recipe is None:
        raise WrongFlag(
            "PICTURE", f"{picture} carries no recipe of Mezzotint; try `mezzotint inspect`"
        )
    return recipe


def _request(recipe: Mapping[str, Any]) -> GenerationRequest:
    try:
        return GenerationRequest.from_dict(recipe["request"])
    except MezzotintError as error:
        raise WrongFlag("PICTURE", f"its recipe cannot be run here: {error}") from None


def _make_again(
    settings: Settings, recipe: Mapping[str, Any], request: GenerationRequest, *, quiet: bool
) -> ImageOutput:
    """Run a recipe, past every cache, and return its picture; nobody signs it again."""
    request = dataclasses.replace(request, output=dataclasses.replace(request.output, sign=False))
    delivery = Delivery(destination=_Nowhere(), quiet=quiet, use_cache=False)
    result = run(deliver(settings, request, delivery))
    index = int(recipe.get("index", 0))
    if index >= len(result.images):
        raise WorkFailed(f"the recipe is of image {index}, and only {len(result.images)} came")
    return result.images[index]


class _Nowhere(Destination):
    """Keeps pictures in memory: they are compared, or written later."""

    def __init__(self) -> None:
        """Check nothing, for nothing is written."""

    def write(self, image: ImageOutput, request: GenerationRequest) -> None:
        """Write nothing."""


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two environments, nested names dotted."""
    before, after = _flat(then), _flat(now)
    names = sorted({*before, *after})
    return {
        name: (before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def _print_comparison(found: Comparison) -> None:
    print(_verdict(found))
    for sentence in found.file:
        print(f"  {escaped(sentence)}")
    if found.worst_block is not None and not found.is_identical:
        x, y, decibels = found.worst_block
        print(f"  the {_BLOCK_PX}x{_BLOCK_PX} px from ({x}, {y}) on come to {decibels:g} dB")
    for name, (then, now) in found.environment.items():
        print(f"  {escaped(name)}: was {escaped(then)}, is {escaped(now)}")
    if not (found.keeps_promise or found.same_pixels or found.environment):
        print("  the environment is the same: the picture itself was changed")


def _origin(signature: Any) -> str:
    """Say in one line who made a picture, as far as its file proves it."""
    return {
        "unsigned": f"unsigned: {ORIGIN}",
        "known": f"signed by {escaped(signature.name)}",
        "unknown": f"signed by an unknown key: {escaped(signature.key)}",
        "broken": "the signature is broken: the file was changed after it was signed",
    }[signature.status]


def _verdict(found: Comparison) -> str:
    """Say in one line how a picture compares."""
    if found.is_identical:
        return "identical"
    if found.differing_pixels is None:
        return "different: the sizes differ"
    if found.same_pixels:
        what = "the file" if found.file else "the weights"
        return f"different: every pixel is the same, {what} is not what the recipe makes"
    differ = f"{found.differing_pixels} of {found.pixels} pixels differ"
    if found.keeps_promise:
        promised = f"this tier promises {found.promised_decibels:g} dB"
        return f"near: {differ}, {found.decibels} dB; {promised}"
    return f"different: {differ}, by at most {found.largest_difference} of 255"


def _json(shown: Any, *, indent: int | None) -> str:
    """Write JSON for a terminal: letters as they are, what could command it escaped."""
    text = json.dumps(shown, indent=indent, ensure_ascii=False, default=str)
    if all(line.isprintable() for line in text.split("\n")):
        return text
    return json.dumps(shown, indent=indent, ensure_ascii=True, default=str)


def _print_recipe(shown: Mapping[str, Any]) -> None:
    for key, value in _flat(shown).items():
        if isinstance(value, list):
            for item in value:
                text = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
                print(f"{escaped(key)}: {escaped(text[:200])}")
        elif value not in (None, ""):
            text = str(value)
            print(f"{escaped(key)}: {escaped(text if len(text) <= 2000 else f'{text[:60]}...')}")
