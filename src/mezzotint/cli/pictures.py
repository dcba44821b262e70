"""The verbs ``replay``, ``verify`` and ``inspect``: what a picture says about itself."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mezzotint.cli.comparison import BLOCK_PX, Comparison, compare, flat
from mezzotint.cli.delivery import Delivery, deliver
from mezzotint.cli.flags import WrongFlag
from mezzotint.cli.outputs import Destination
from mezzotint.cli.session import load_settings, run
from mezzotint.cli.terminal import escaped
from mezzotint.errors import MezzotintError, WorkFailed
from mezzotint.plain import is_list
from mezzotint.request import GenerationRequest
from mezzotint.settings import Settings
from mezzotint.types import ImageOutput

__all__ = ["inspect", "replay", "verify"]

IDENTICAL, DIFFERENT, NO_RECIPE = 0, 1, 2

Picture = Annotated[Path, typer.Argument(metavar="PICTURE", help="PNG, JPEG or WebP.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AllowDownload = Annotated[
    bool,
    typer.Option("--allow-download", help="Fetch a model that the picture names by its Hub id."),
]
ORIGIN = "a recipe proves how the picture is made, not who made it"


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


def _print_comparison(found: Comparison) -> None:
    print(_verdict(found))
    for sentence in found.file:
        print(f"  {escaped(sentence)}")
    if found.worst_block is not None and not found.is_identical:
        x, y, decibels = found.worst_block
        print(f"  the {BLOCK_PX}x{BLOCK_PX} px from ({x}, {y}) on come to {decibels:g} dB")
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
    for key, value in flat(shown).items():
        if is_list(value):
            for item in value:
                text = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
                print(f"{escaped(key)}: {escaped(text[:200])}")
        elif value not in (None, ""):
            text = str(value)
            print(f"{escaped(key)}: {escaped(text if len(text) <= 2000 else f'{text[:60]}...')}")
