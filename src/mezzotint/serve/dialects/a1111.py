"""A1111: ``/sdapi/v1`` as its own clients call it (WIRE, sections 5 and 9).

``sampler_name`` is our ``scheduler``, ``scheduler`` our ``sigma_schedule``; prompts
are read in the A1111 dialect. Picture i of a request has seed + i. Unknown fields
are ignored, as A1111 does; what we cannot honour is said in ``info.warnings``.
An interrupted request answers the pictures that were finished, and says so.
"""

import base64
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from mezzotint import errors
from mezzotint.errors import UnknownName
from mezzotint.plain import is_mapping
from mezzotint.request import GenerationRequest, Output
from mezzotint.serve.dialects import a1111_extras
from mezzotint.serve.dialects.a1111_bodies import ImageToImage, TextToImage
from mezzotint.serve.dialects.a1111_controlnet import FIELD, read_units
from mezzotint.serve.dialects.a1111_extras import post
from mezzotint.serve.dialects.a1111_lists import (
    ENDPOINTS,
    find_checkpoint,
    options,
)
from mezzotint.serve.dialects.a1111_techniques import (
    read_hires,
    read_inpaint,
    read_plainly,
    read_seed,
    read_strength,
    read_variation,
)
from mezzotint.serve.dialects.webui.scripts import Script, Sheet, read_script
from mezzotint.serve.dialects.webui.tasks import Task, interrupt, progress, skip, tasks_of
from mezzotint.serve.dialects.webui.upscaling import joined, tiled
from mezzotint.serve.errors import NotFound, Problem, WrongField
from mezzotint.serve.front import Front, new_id
from mezzotint.serve.wire import Dialect, Endpoint, json_response, read_fields, read_json, visit
from mezzotint.textchunks import PARAMETERS, read_texts
from mezzotint.types import (
    MAX_IMAGES,
    MAX_SEED,
    Event,
    GenerationResult,
    ImageFinished,
    ImageOutput,
    Stepped,
)
from mezzotint.vocabulary import A1111_SAMPLERS, match_sampler, match_schedule

__all__ = ["DIALECT", "error_body", "from_images", "to_request"]

_NAMES = {
    "guidance_scale": "cfg_scale",
    "num_inference_steps": "steps",
    "scheduler": "sampler_name",
    "sigma_schedule": "scheduler",
    "num_images": "batch_size",
    "strength": "denoising_strength",
    "image": "init_images",
    "model": "sd_model_checkpoint",
    "upscale": "upscaling_resize",
    "upscale.model": "upscaler_1",
    "hires": "enable_hr",
    "variation": "subseed_strength",
    "inpaint": "mask",
    "tiling": "tiling",
    "controls": FIELD,
    "loras": "prompt",
    "embeddings": "prompt",
}
_NOT_HONOURED: Mapping[str, Any] = {
    "restore_faces": False,
    "s_churn": 0,
    "refiner_checkpoint": None,
    "hr_checkpoint_name": None,
    "hr_sampler_name": None,
    "hr_scheduler": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """What a body asks for beyond the request: rounds, and the answer's shape."""

    request: GenerationRequest
    rounds: int = 1
    send_images: bool = True
    warnings: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])


def to_request(
    body: Mapping[str, Any], model: str | None = None, *, is_img2img: bool = False
) -> Translation:
    """Translate a txt2img or img2img body.

    Args:
        body: What came.
        model: The model to use; the default one if None.
        is_img2img: Whether ``init_images`` is needed.

    Raises:
        InvalidRequest: If a field is wrong; named in A1111's words.
    """
    given = {k: v for k, v in body.items() if not (k == "mask" and v == "")}
    fields, _ = read_fields(ImageToImage if is_img2img else TextToImage, given)
    warnings = [
        f"{name} is not offered here and was left out"
        for name, off in _NOT_HONOURED.items()
        if body.get(name) not in (off, None, "", False, 0)
    ]
    native: dict[str, Any] = {
        "prompt": fields.prompt,
        "negative_prompt": fields.negative_prompt,
        "prompt_dialect": "a1111",
        "num_images": fields.batch_size,
        "seed": read_seed(fields.seed),
        "num_inference_steps": fields.steps,
        "guidance_scale": fields.cfg_scale,
        "width": fields.width or None,
        "height": fields.height or None,
        "model": model,
        "tiling": fields.tiling,
        "variation": read_variation(fields),
    }
    native |= _sampler(fields, warnings)
    if is_img2img:
        native |= _init(fields, warnings)
    else:
        native["hires"] = read_hires(fields, warnings)
    start = body["init_images"][0] if is_img2img else None
    native["controls"] = read_units(body.get("alwayson_scripts"), warnings, start_image=start)
    native = {k: v for k, v in native.items() if v is not None and v != []}
    return Translation(
        request=GenerationRequest.from_dict(native),
        rounds=fields.n_iter,
        send_images=fields.send_images,
        warnings=tuple(warnings),
        parameters=_parameters(body, fields),
    )


def _parameters(body: Mapping[str, Any], fields: TextToImage) -> dict[str, Any]:
    """Return what the answer repeats of a body: its pictures only where it says so."""
    if isinstance(fields, ImageToImage) and fields.include_init_images:
        return dict(body)
    return {k: None if k in ("init_images", "mask") else v for k, v in body.items()}


def _sampler(fields: TextToImage, warnings: list[str]) -> dict[str, Any]:
    """Read sampler and schedule type by A1111's names, other tools' or ours."""
    native: dict[str, Any] = {}
    name = fields.sampler_name or fields.sampler_index
    if name:
        match = match_sampler(name)
        if match is None:
            raise UnknownName("sampler", name[:80], A1111_SAMPLERS, field="sampler_name")
        if not match.exact:
            warnings.append(f"sampler {name!r} is not offered here; {match.scheduler} was used")
        native |= {"scheduler": match.scheduler, "sigma_schedule": match.sigma_schedule}
    schedule = fields.scheduler
    if schedule and schedule.lower() != "automatic":
        found = match_schedule(schedule)
        if found is None:
            raise WrongField(
                f"scheduler {schedule[:80]!r} is no schedule type; see /sdapi/v1/schedulers",
                field="scheduler",
                value=schedule[:80],
            )
        if not found[1]:
            warnings.append(f"schedule type {schedule!r} is not offered here; {found[0]} was used")
        native["sigma_schedule"] = found[0]
    return native


def _init(fields: ImageToImage, warnings: list[str]) -> dict[str, Any]:
    """Read the pictures of img2img."""
    if not fields.init_images:
        raise NotFound("Init image not found")
    first, *others = fields.init_images
    if others:
        warnings.append(f"only the first of {len(others) + 1} init_images was used")
    strength = read_strength(fields, fields.steps, warnings)
    native: dict[str, Any] = {"image": first, "strength": strength}
    if fields.mask is not None:
        native |= {"mask": fields.mask, "inpaint": read_inpaint(fields)}
    return native


def from_images(
    images: list[ImageOutput],
    translation: Translation,
    model: Mapping[str, Any],
    *,
    interrupted: bool,
    prompts: Sequence[tuple[str, str]] | None = None,
    sheets: Sequence[bytes] = (),
    template: ImageOutput | None = None,
) -> dict[str, Any]:
    """Write the answer: pictures, parameters, and ``info`` as a JSON text.

    Args:
        images: What was drawn.
        translation: What was asked.
        model: Which model drew it.
        interrupted: Whether there could have been more.
        prompts: Both prompts of each picture, where a script changed them.
        sheets: Grids that are answered before the pictures.
        template: The picture whose text stands for the grids.
    """
    request = translation.request
    first = images[0] if images else template
    both = list(prompts or ()) or [(request.prompt, request.negative_prompt)] * len(images)
    seeds = [i.seed for i in images]
    subseeds = _subseeds(translation, seeds)
    texts = [_infotext(template)] * len(sheets) if template else []
    texts += [_infotext(i) for i in images]
    warnings = [*translation.warnings, *(w for i in images for w in i.warnings)]
    info: dict[str, Any] = {
        "prompt": request.prompt,
        "all_prompts": [prompt for prompt, _ in both],
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [negative for _, negative in both],
        "seed": first.seed if first else request.seed,
        "all_seeds": seeds,
        "subseed": subseeds[0] if subseeds else request.seed,
        "all_subseeds": subseeds,
        "subseed_strength": request.variation.strength if request.variation else 0,
        "width": first.width if first else request.width,
        "height": first.height if first else request.height,
        "sampler_name": str(translation.parameters.get("sampler_name") or request.scheduler or ""),
        "cfg_scale": request.guidance_scale,
        "steps": request.num_inference_steps,
        "batch_size": request.num_images,
        "restore_faces": False,
        "sd_model_name": model.get("name", request.model),
        "sd_model_hash": str(model.get("digest", ""))[:10],
        "denoising_strength": request.strength if request.image is not None else None,
        "extra_generation_params": {},
        "index_of_first_image": len(sheets),
        "infotexts": texts,
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "interrupted": interrupted,
        "warnings": list(dict.fromkeys(warnings)),
    }
    files = [*sheets, *(i.data for i in images)]
    return {
        "images": [_b64(data) for data in files] if translation.send_images else [],
        "parameters": dict(translation.parameters),
        "info": orjson.dumps(info).decode(),
    }


def _infotext(image: ImageOutput) -> str:
    """Return the text that a picture holds."""
    return read_texts(image.data).get(PARAMETERS, "")


def _subseeds(translation: Translation, seeds: list[int]) -> list[int]:
    """Return the other seed of each picture; the pictures' own where there is none."""
    variation = translation.request.variation
    if variation is None or variation.seed is None:
        return seeds
    return [(variation.seed + k) % (MAX_SEED + 1) for k in range(len(seeds))]


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def error_body(problem: Problem) -> dict[str, Any]:
    """Write an error: a list of places for a wrong field, a sentence otherwise."""
    theirs = problem.renamed(_NAMES)
    if problem.status == 422 and theirs.field is not None:
        place = {"type": problem.code, "loc": ["body", theirs.field], "msg": theirs.detail}
        return {"detail": [{**place, "input": theirs.value}]}
    return {"error": problem.cause, "detail": theirs.detail, "body": "", "errors": theirs.detail}


def _render(problem: Problem, request_id: str) -> Response:
    return json_response(error_body(problem), problem.status)


async def _model(front: Front, http: Request, body: Mapping[str, Any]) -> str | None:
    """Return the model that the body's settings or the options name."""
    settings = body.get("override_settings")
    title = settings.get("sd_model_checkpoint") if is_mapping(settings) else None
    title = title or options(front, http).get("sd_model_checkpoint")
    return await find_checkpoint(front, str(title)) if title else None


async def txt2img(front: Front, http: Request) -> Response:
    """Make pictures from a prompt."""
    return await _make(front, http, is_img2img=False)


async def img2img(front: Front, http: Request) -> Response:
    """Make pictures from pictures."""
    return await _make(front, http, is_img2img=True)


async def _make(front: Front, http: Request, *, is_img2img: bool) -> Response:
    """Draw a body, or the bodies that its script makes of it."""
    body = await read_json(http)
    model = await _model(front, http, body)
    script = read_script(body, is_img2img=is_img2img)
    whole = to_request(body, model, is_img2img=is_img2img)
    script = script or Script(name="", chains=((body,),))
    bodies = [one for chain in script.chains for one in chain]
    each = whole.request.num_images * whole.rounds if len(bodies) == 1 else 1
    total = each * len(bodies)
    caller = visit(http).caller
    front.admit(replace(whole.request, num_images=min(total, MAX_IMAGES)), caller)
    for one in bodies if script.name else ():
        to_request(one, await _model(front, http, one), is_img2img=is_img2img)
    layout = None
    if script.enlarge is not None:
        script, layout = await tiled(front, http, script, body)
        total = len(script.chains)
        front.admit(replace(whole.request, num_images=min(total, MAX_IMAGES)), caller)
    task = Task(caller.name, new_id("a1111"), total)
    tasks_of(front)[task.id] = task
    try:
        for chain in script.chains:
            await _chain(front, http, chain, task, script, is_img2img=is_img2img)
    finally:
        del tasks_of(front)[task.id]
    name = whole.request.model
    models = {m["name"]: m for m in await front.recent_models()}
    model_shown = models.get(name.partition("@")[0], {})
    stopped = task.interrupted or task.skipped
    warnings = [*whole.warnings, *script.warnings]
    sheets = [] if stopped else await _sheets(front, task.finished, script.sheets, warnings)
    if layout is not None and not stopped:
        sheets = await joined(front, task.finished, layout)
    has_all = script.sends != "none" or not sheets
    shown = task.finished if has_all else []
    return json_response(
        from_images(
            shown,
            replace(whole, warnings=tuple(warnings)),
            model_shown,
            interrupted=stopped,
            prompts=task.prompts if script.name else None,
            sheets=sheets,
            template=task.finished[0] if task.finished else None,
        )
    )


async def _chain(
    front: Front,
    http: Request,
    chain: Sequence[Mapping[str, Any]],
    task: Task,
    script: Script,
    *,
    is_img2img: bool,
) -> None:
    """Draw bodies one after the other, each from the picture that the one before drew."""
    before: ImageOutput | None = None
    begun = len(task.finished)
    for body in chain:
        if task.interrupted:
            return
        own = body if before is None else {**body, "init_images": [_b64(before.data)]}
        translation = to_request(own, await _model(front, http, own), is_img2img=is_img2img)
        embeddings = (await front.capabilities(http)).get("embeddings", ())
        translation = replace(translation, request=read_plainly(translation.request, embeddings))
        known = len(task.finished)
        await _rounds(front, http, translation, task)
        request = translation.request
        new = task.finished[known:]
        task.prompts += [(request.prompt, request.negative_prompt)] * len(new)
        if len(chain) > 1:
            if not new:  # skipped: there is nothing to go on from
                return
            before = new[-1]
    if script.sends == "last":
        del task.finished[begun:-1], task.prompts[begun:-1]


async def _sheets(
    front: Front, images: Sequence[ImageOutput], sheets: Sequence[Sheet], warnings: list[str]
) -> list[bytes]:
    """Lay pictures out on the grids of a script."""
    if not sheets or not images:
        return []
    if len({(image.width, image.height) for image in images}) > 1:
        warnings.append("the pictures differ in size: they are answered one by one, without a grid")
        return []
    return [
        await front.service.grid(
            [images[place].data for place in sheet.pictures],
            columns=sheet.columns,
            padding_px=sheet.margin,
            output=Output(),
        )
        for sheet in sheets
    ]


async def _rounds(front: Front, http: Request, translation: Translation, task: Task) -> None:
    """Run ``n_iter`` rounds; skip ends one of them, interrupt all."""
    request = translation.request
    for number in range(translation.rounds):
        if task.interrupted:
            return
        if request.seed is not None and number:
            result = await _round(front, http, _of_round(request, number), task)
        else:
            result = await _round(front, http, request, task)
        if result is None:
            continue
        if number == 0 and request.seed is None:
            request = replace(request, seed=result.images[0].seed)
        task.finished.extend(result.images)


def _of_round(request: GenerationRequest, number: int) -> GenerationRequest:
    """Return the request of a later round: both seeds count on."""
    ahead = number * request.num_images
    changes: dict[str, Any] = {"seed": ((request.seed or 0) + ahead) % (MAX_SEED + 1)}
    variation = request.variation
    if variation is not None and variation.seed is not None:
        other = (variation.seed + ahead) % (MAX_SEED + 1)
        changes["variation"] = replace(variation, seed=other)
    return replace(request, **changes)


async def _round(
    front: Front, http: Request, request: GenerationRequest, task: Task
) -> GenerationResult | None:
    """Run one request; None if it was skipped or interrupted."""

    def observe(event: Event) -> None:
        task.running = event.id
        if isinstance(event, Stepped):
            task.step, task.steps = event.step, event.steps
            task.preview = event.preview or task.preview
        elif isinstance(event, ImageFinished):
            task.done, task.step = task.done + 1, 0

    try:
        return await front.generate(http, request, observe)
    except errors.Cancelled:
        if task.interrupted or task.skipped:
            return None
        raise


DIALECT = Dialect(
    name="a1111",
    pattern=re.compile(r"^/(sdapi|controlnet)(/|$)"),
    endpoints=(
        post("txt2img", txt2img, "make pictures from a prompt"),
        post("img2img", img2img, "make pictures from pictures"),
        post("interrupt", interrupt, "end the caller's requests", body=False),
        post("skip", skip, "end the caller's round", body=False),
        Endpoint(
            method="GET",
            path="/sdapi/v1/progress",
            handler=progress,
            summary="A1111: how far it is",
        ),
        *a1111_extras.ENDPOINTS,
        *ENDPOINTS,
    ),
    render=_render,
)
