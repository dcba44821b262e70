"""The verb ``generate``: words and flags into pictures on disk."""

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from mezzotint.cli import flags
from mezzotint.cli.delivery import Delivery, deliver
from mezzotint.cli.flags import field_help
from mezzotint.cli.local import completing
from mezzotint.cli.outputs import Destination, describe
from mezzotint.cli.requests import (
    build_request,
    gate_fields,
    read_seed,
    technique_fields,
    with_format,
    with_techniques,
)
from mezzotint.cli.session import load_settings, open_service, run
from mezzotint.cli.terminal import escaped
from mezzotint.errors import MezzotintError
from mezzotint.plain import is_mapping
from mezzotint.request import GenerationRequest
from mezzotint.settings import Settings, terminal_pictures

__all__ = ["generate"]

_PICTURE, _TECHNIQUES, _OUTPUT, _RUN = "Picture", "Techniques", "Output", "Run"
_LONG_S = 90.0  # from there on a plan says minutes

Words = Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to draw; - reads stdin.")]


def _option(panel: str, *names: str, about: str, known: Any = None) -> Any:
    """Return an option of one help panel; ``known`` gives a shell the names that it takes."""
    return typer.Option(*names, help=about, rich_help_panel=panel, autocompletion=known)


def _whole(panel: str, *names: str, about: str) -> Any:
    """Return an option that takes a whole number and says what came if it is none."""
    return typer.Option(
        *names, help=about, rich_help_panel=panel, parser=flags.whole_number, metavar="INT"
    )


def _real(panel: str, *names: str, about: str) -> Any:
    """Return an option that takes a number and says what came if it is none."""
    return typer.Option(
        *names, help=about, rich_help_panel=panel, parser=flags.real_number, metavar="NUMBER"
    )


@with_techniques("truncation", panel=_TECHNIQUES)
def generate(
    context: typer.Context,
    prompt: Words = None,
    *,
    # --- the picture
    model: Annotated[
        str | None,
        _option(
            _PICTURE, "--model", "-m", about="Name, name@version, or path.", known=completing.models
        ),
    ] = None,
    seed: Annotated[str | None, _option(_PICTURE, "--seed", "-s", about=field_help("seed"))] = None,
    num_images: Annotated[
        int | None, _whole(_PICTURE, "--num-images", "-n", about=field_help("num_images"))
    ] = None,
    width: Annotated[int | None, _whole(_PICTURE, "--width", about=field_help("width"))] = None,
    height: Annotated[int | None, _whole(_PICTURE, "--height", about=field_help("height"))] = None,
    num_inference_steps: Annotated[
        int | None,
        _whole(
            _PICTURE, "--num-inference-steps", "--steps", about=field_help("num_inference_steps")
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        _option(
            _PICTURE,
            "--scheduler",
            about="E.g. euler, dpmpp_2m, or a diffusers class.",
            known=completing.schedulers,
        ),
    ] = None,
    sigma_schedule: Annotated[
        str | None,
        _option(
            _PICTURE,
            "--sigma-schedule",
            about="E.g. karras, exponential, beta.",
            known=completing.sigma_schedules,
        ),
    ] = None,
    guidance_scale: Annotated[
        str | None,
        _option(_PICTURE, "--guidance-scale", "-g", about="Number, linear:8:2, list:8,6,4, JSON."),
    ] = None,
    negative_prompt: Annotated[
        str | None, _option(_PICTURE, "--negative-prompt", about=field_help("negative_prompt"))
    ] = None,
    prompt_dialect: Annotated[
        str | None,
        _option(_PICTURE, "--prompt-dialect", about=field_help("prompt_dialect")),
    ] = None,
    # --- techniques without a row of their own
    truncation: Annotated[
        float | None, _real(_TECHNIQUES, "--truncation", about=field_help("latent.truncation"))
    ] = None,
    class_label: Annotated[
        int | None, _whole(_TECHNIQUES, "--class-label", about=field_help("latent.class_label"))
    ] = None,
    gate: Annotated[
        list[str] | None,
        _option(
            _TECHNIQUES,
            "--gate",
            about="NAME[:THRESHOLD[:open|closed]]; repeatable.",
            known=completing.gates,
        ),
    ] = None,
    max_attempts: Annotated[
        int | None, _whole(_TECHNIQUES, "--max-attempts", about=field_help("gates.max_attempts"))
    ] = None,
    keep: Annotated[
        str | None, _option(_TECHNIQUES, "--keep", about=field_help("gates.keep"))
    ] = None,
    animate: Annotated[
        str | None,
        _option(_OUTPUT, "--animate", about="webp, gif, apng or mp4[:FPS[:LOOP]], of a walk."),
    ] = None,
    # --- output
    output: Annotated[
        Path | None, _option(_OUTPUT, "--output", "-o", about="File to write; - is stdout.")
    ] = None,
    output_dir: Annotated[
        Path, _option(_OUTPUT, "--output-dir", about="Folder for pictures without -o.")
    ] = Path("outputs"),
    no_clobber: Annotated[
        bool, _option(_OUTPUT, "--no-clobber", about="Never replace the file named by -o.")
    ] = False,
    output_format: Annotated[
        str | None, _option(_OUTPUT, "--output-format", about=field_help("output.format"))
    ] = None,
    quality: Annotated[
        int | None, _whole(_OUTPUT, "--quality", about=field_help("output.quality"))
    ] = None,
    no_metadata: Annotated[
        bool, _option(_OUTPUT, "--no-metadata", about="Leave the recipe out of the file.")
    ] = False,
    as_json: Annotated[bool, _option(_OUTPUT, "--json", about="Print the result as JSON.")] = False,
    preview: Annotated[
        bool, _option(_OUTPUT, "--preview", about="Show pictures in the terminal.")
    ] = False,
    quiet: Annotated[bool, _option(_OUTPUT, "--quiet", "-q", about="No progress.")] = False,
    # --- the run
    request: Annotated[
        Path | None, _option(_RUN, "--request", about="JSON file with a whole request.")
    ] = None,
    set_: Annotated[
        list[str] | None, _option(_RUN, "--set", about="FIELD=JSON, any request field.")
    ] = None,
    reproducibility: Annotated[
        str | None, _option(_RUN, "--reproducibility", about=field_help("reproducibility"))
    ] = None,
    priority: Annotated[
        int | None, _whole(_RUN, "--priority", about=field_help("priority"))
    ] = None,
    deadline_s: Annotated[
        float | None, _real(_RUN, "--deadline-s", about=field_help("deadline_s"))
    ] = None,
    device: Annotated[
        str | None, _option(_RUN, "--device", about="auto, cpu, cuda or cuda:N.")
    ] = None,
    dtype: Annotated[
        str | None, _option(_RUN, "--dtype", about=flags.placement_help("dtype"))
    ] = None,
    offload: Annotated[
        str | None, _option(_RUN, "--offload", about=flags.placement_help("offload"))
    ] = None,
    vae_tiling: Annotated[
        bool | None, _option(_RUN, "--vae-tiling", about=flags.placement_help("vae_tiling"))
    ] = None,
    quantize: Annotated[
        str | None, _option(_RUN, "--quantize", about=flags.placement_help("quantize"))
    ] = None,
    server: Annotated[
        str,
        _option(
            _RUN, "--server", about="URL that draws; auto: one that runs here; none: this process."
        ),
    ] = "auto",
    server_key: Annotated[
        str | None, _option(_RUN, "--server-key", about="API key of the server.")
    ] = None,
    interactive: Annotated[
        bool,
        _option(_OUTPUT, "--interactive", "-i", about="Refine a prompt: each line a new picture."),
    ] = False,
    no_cache: Annotated[
        bool, _option(_RUN, "--no-cache", about="Make it again even if it is known.")
    ] = False,
    plan: Annotated[
        bool, _option(_RUN, "--plan", about="Print plan and predicted cost; make nothing.")
    ] = False,
    grid_x: Annotated[
        str | None, _option(_RUN, "--grid-x", about="FIELD=V1,V2,...: a sheet, values across.")
    ] = None,
    grid_y: Annotated[
        str | None, _option(_RUN, "--grid-y", about="FIELD=V1,V2,...: values down the sheet.")
    ] = None,
    profile: Annotated[
        bool, _option(_RUN, "--profile", about="Print a stage table; write a Chrome trace.")
    ] = False,
    **techniques: Any,
) -> None:
    """Draw one or more pictures and print the paths of the files.

    Flags override the fields of --request; --set overrides both.
    """
    given: dict[str, Any] = {
        "prompt": sys.stdin.read().strip() if prompt == "-" else prompt,
        "model": model,
        "seed": read_seed(seed, "--seed"),
        "num_images": num_images,
        "width": width,
        "height": height,
        "num_inference_steps": num_inference_steps,
        "scheduler": scheduler,
        "sigma_schedule": sigma_schedule,
        "guidance_scale": flags.parse_guidance(guidance_scale) if guidance_scale else None,
        "negative_prompt": negative_prompt,
        "prompt_dialect": prompt_dialect,
        "latent.truncation": truncation,
        "latent.class_label": class_label,
        "output.format": output_format,
        "output.quality": quality,
        "output.metadata": False if no_metadata else None,
        "output.animation": flags.parse_animation(animate) if animate else None,
        "reproducibility": reproducibility,
        "priority": priority,
        "deadline_s": deadline_s,
        **gate_fields(gate, max_attempts, keep),
        **technique_fields(techniques),
    }
    overrides = [flags.parse_set(text) for text in set_ or ()]
    wanted = build_request(given, file=request, overrides=overrides)
    settings = load_settings(
        context,
        models__placement__device=device,
        models__placement__dtype=dtype,
        models__placement__offload=offload,
        models__placement__vae_tiling=vae_tiling,
        models__placement__quantize=quantize,
    ).settings
    if plan:
        run(_print_plan(settings, wanted, as_json=as_json))
        return
    is_placed = any(value is not None for value in (device, dtype, offload, vae_tiling, quantize))
    url = _server(server, settings, wanted, here=is_placed or profile or interactive)
    if interactive:
        from mezzotint.cli.local.interactive import converse

        shows = preview or sys.stderr.isatty()
        converse(settings, wanted, output_dir, pictures_as=_pictures(shows), quiet=quiet)
        return
    if grid_x or grid_y:
        from mezzotint.cli.grid import draw_grid, parse_axis

        def cell(changes: list[tuple[str, Any]]) -> GenerationRequest:
            return build_request(given, file=request, overrides=[*overrides, *changes])

        axes = (parse_axis(grid_x, "--grid-x"), parse_axis(grid_y, "--grid-y"))
        sheet = draw_grid(settings, cell, axes, Destination(output, output_dir))
        print(sheet or "")
        return
    wanted = with_format(wanted, output, given=output_format)
    several = wanted.num_files > 1
    destination = Destination(output, output_dir, several=several, replace=not no_clobber)
    delivery = Delivery(
        destination=destination,
        as_json=as_json,
        quiet=quiet,
        use_cache=not (no_cache or profile),
        pictures_as=_pictures(preview),
        server=url,
        server_key=server_key,
    )
    with _profiling(delivery) if profile else contextlib.nullcontext():
        run(_generate(settings, wanted, delivery))


def _pictures(wanted: bool) -> str | None:
    """Return how this terminal shows pictures, None not to show any."""
    if not wanted:
        return None
    from mezzotint.cli.progress import ask_terminal

    return ask_terminal(terminal_pictures())


def _server(wanted: str, settings: Settings, request: GenerationRequest, *, here: bool) -> str:
    """Return the address of the server that draws, "" for this process.

    Raises:
        WrongFlag: If what was given is no address.
    """
    if wanted == "none" or (wanted == "auto" and here):
        return ""
    if wanted != "auto":
        if here:
            raise flags.WrongFlag("--server", "a server draws where and as it was started to")
        if not wanted.startswith(("http://", "https://")):
            raise flags.WrongFlag("--server", f"must be auto, none or a URL, got {wanted[:60]!r}")
        return wanted
    from mezzotint.cli.local.servers import find_server, suits

    return find_server(settings.home_path) if suits(request) else ""


async def _generate(settings: Settings, request: GenerationRequest, delivery: Delivery) -> None:
    """Make the pictures and tell what was changed."""
    if delivery.server and not delivery.quiet:
        where = f"the server at {escaped(delivery.server)} draws; --server none draws here"
        print(where, file=sys.stderr)
    result = await deliver(settings, request, delivery)
    warnings = (*result.warnings, *(w for i in result.images for w in i.warnings))
    for warning in dict.fromkeys(warnings):
        print(f"warning: {escaped(warning)}", file=sys.stderr)
    if delivery.as_json:
        print(json.dumps(describe(result, delivery.paths), ensure_ascii=False))


async def _print_plan(settings: Settings, request: GenerationRequest, *, as_json: bool) -> None:
    """Resolve the request and print what would be done."""
    async with open_service(settings) as service:
        answer = await service.plan(request)
    if as_json:
        print(json.dumps(dict(answer), ensure_ascii=False, default=str))
        return
    print("\n".join(_outline(answer, request.num_images)), end="\n\n")
    for title, value in answer.items():
        _print_branch(title, value)


def _outline(answer: Mapping[str, Any], num_images: int) -> list[str]:
    """Return what a plan comes to in two lines: what is drawn, and what that takes."""
    plan, cost = answer["plan"], answer["cost"]
    drawn = [f"{num_images} pictures"] if num_images > 1 else []
    drawn += [f"{escaped(plan['model'])}, {plan['width']} x {plan['height']} px"]
    if steps := plan["num_inference_steps"]:
        drawn.append(f"{steps} steps of {escaped(plan['scheduler'])}")
        drawn.append(f"guidance {plan['guidance_scale']:g}")
    seconds = cost["seconds"]
    takes = [f"about {seconds:.1f} s" if seconds < _LONG_S else f"about {seconds / 60:.0f} min"]
    if calls := cost.get("model_calls"):
        takes.append(f"{calls} calls of the network")
    takes.append(f"{cost['bytes'] / 1e6:.0f} MB of memory")
    how = "measured here" if cost.get("measured") else "guessed: nothing like it was drawn here"
    return [", ".join(drawn), f"{', '.join(takes)} ({how})"]


def _print_branch(title: str, value: Any, indent: str = "") -> None:
    """Print plain data as an indented list for people."""
    if is_mapping(value) and value:
        print(f"{indent}{title}")
        for key, item in value.items():
            _print_branch(key, item, indent + "  ")
        return
    items = list(cast("Sequence[Any]", value)) if isinstance(value, list | tuple) else []
    if any(is_mapping(item) for item in items):
        for number, item in enumerate(items):
            _print_branch(f"{title}[{number}]", item, indent)
    elif isinstance(value, list | tuple) and title == "warnings":
        for item in items:
            print(f"{indent}warning: {item}")
    else:
        shown = json.dumps(_rounded(value), ensure_ascii=False, default=str)
        print(f"{indent}{title}: {value if isinstance(value, str) else shown}")


def _rounded(value: Any) -> Any:
    """Round numbers to six digits, as people read them; JSON has them whole."""
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in cast("Sequence[Any]", value)]
    return float(f"{value:.6g}") if isinstance(value, float) else value


@contextlib.contextmanager
def _profiling(delivery: Delivery) -> Any:
    """Print a stage table afterwards and write the trace beside the first picture."""
    from mezzotint.observe.profile import Profile

    profile = Profile()
    with profile.running():
        yield
    print(
        f"{'stage':24}{'calls':>7}{'total s':>10}{'mean ms':>10}{'share':>8}{'peak MiB':>10}",
        file=sys.stderr,
    )
    for row in profile.table():
        numbers = f"{row.total_s:10.3f}{row.mean_s * 1000:10.1f}{row.share:8.0%}"
        peak = row.peak_cuda_bytes or row.peak_bytes
        numbers += f"{peak >> 20:10}" if peak else f"{'-':>10}"
        print(f"{row.name:24}{row.calls:7}{numbers}", file=sys.stderr)
    first = next((p for p in delivery.paths.values() if p), Path("mezzotint"))
    try:
        path = profile.write_trace(first.with_suffix(".trace.json"))
    except OSError as error:
        raise MezzotintError(f"cannot write the trace: {error.strerror}") from None
    print(f"trace: {path}", file=sys.stderr)
