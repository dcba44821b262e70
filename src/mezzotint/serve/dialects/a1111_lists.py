"""A1111 lists: what clients ask for at start, in A1111's shapes (WIRE, section 9)."""

import platform
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.preprocessing import A1111_MODULES
from mezzotint.serve.dialects.webui.scripts import SCRIPTS, script_infos
from mezzotint.serve.errors import Unsupported
from mezzotint.serve.front import Front
from mezzotint.serve.schema import ANY_OBJECT
from mezzotint.serve.torchserve_metrics import machine_memory
from mezzotint.serve.wire import Body, Endpoint, json_response, read_json, visit
from mezzotint.vocabulary import (
    A1111_SAMPLERS,
    A1111_SCHEDULES,
    a1111_sampler,
    match_sampler,
    match_schedule,
)

__all__ = ["ENDPOINTS", "find_checkpoint", "model_title", "options", "upscaler_names"]

_DEFAULTS: Mapping[str, Any] = {
    "samples_save": False,
    "samples_format": "png",
    "grid_save": False,
    "return_grid": False,
    "send_seed": True,
    "send_size": True,
    "enable_pnginfo": True,
    "jpeg_quality": 90,
    "CLIP_stop_at_last_layers": 1,
    "eta_noise_seed_delta": 0,
    "randn_source": "CPU",
    "sd_vae": "Automatic",
    "live_previews_enable": True,
    "show_progress_every_n_steps": 1,
    "live_previews_image_format": "png",
    "sd_model_checkpoint": "",
    "sd_checkpoint_hash": "",
    "upcast_attn": False,
    "outdir_samples": "",
}
_MOST_OPTIONS = 100
_MOST_CALLERS = 1000
_EVERYBODY = ""  # no caller has this name


def model_title(model: Mapping[str, Any]) -> str:
    """Return a model's name with its short hash, as A1111 shows it."""
    return f"{_name(model)} [{model['digest'][:10]}]"


def _name(model: Mapping[str, Any]) -> str:
    return model["name"] if model["default"] else f"{model['name']}@{model['version']}"


async def find_checkpoint(front: Front, title: str) -> str:
    """Return the name of the model a client means by title, name or hash.

    Raises:
        UnknownName: If there is none.
    """
    models = await front.service.models()
    bare = title.partition(" [")[0].removesuffix(".safetensors").removesuffix(".ckpt")
    for model in models:
        if bare == _name(model) or title in (model["digest"], model["digest"][:10]):
            return _name(model)
    raise UnknownName("model", title[:200], map(_name, models), field="sd_model_checkpoint")


def options(front: Front, http: Request) -> dict[str, Any]:
    """Return the options of the caller: its own over everybody's over the defaults."""
    own = _kept(front).get(visit(http).caller.name, {})
    return {**_DEFAULTS, **_kept(front).get(_EVERYBODY, {}), **own}


def _kept(front: Front) -> "OrderedDict[str, dict[str, Any]]":
    """Return what was set, by the name of who set it."""
    return front.memory.setdefault("a1111_options", OrderedDict())


async def get_options(front: Front, http: Request) -> Response:
    """Show the options."""
    return json_response(await _with_checkpoint(front, http))


async def _with_checkpoint(front: Front, http: Request) -> dict[str, Any]:
    """Return the caller's options, with a checkpoint where there is any model."""
    values = options(front, http)
    if not values["sd_model_checkpoint"]:
        models = [m for m in await front.service.models() if m["default"]]
        first = next((m for m in models if m["takes_prompt"]), models[0] if models else None)
        if first is not None:
            values["sd_model_checkpoint"] = model_title(first)
            values["sd_checkpoint_hash"] = first["digest"]
    return values


async def set_options(front: Front, http: Request) -> Response:
    """Set options for the caller, or with ``?global=true`` for everybody.

    They live as long as the server. Everybody's need the scope ``manage``, since they
    change what other callers' requests draw.
    """
    body = await read_json(http)
    caller = visit(http).caller
    is_global = http.query_params.get("global", "").lower() == "true"
    if is_global:
        caller.require("manage")
    owner = _EVERYBODY if is_global else caller.name
    kept = _kept(front)
    values = kept.get(owner, {})
    for name, value in body.items():
        if value is not None and not isinstance(value, str | int | float | bool | list):
            raise InvalidRequest(f"{name} must be a plain value", field=name)
        if len(str(cast("object", value))) > 1000 or len(name) > 100:
            raise InvalidRequest(f"{name[:100]} is too long", field=name[:100])
    if body.get("sd_model_checkpoint"):
        await find_checkpoint(front, str(body["sd_model_checkpoint"]))
    if len({*values, *body}) > _MOST_OPTIONS:
        raise InvalidRequest(f"at most {_MOST_OPTIONS} options are kept", field="options")
    kept[owner] = {**values, **body}
    kept.move_to_end(owner)
    while len(kept) > _MOST_CALLERS:
        kept.pop(next(name for name in kept if name != _EVERYBODY))
    return json_response(None)


async def samplers(front: Front, http: Request) -> Response:
    """List the samplers by A1111's names, ours among the aliases."""
    known = await front.capabilities(http)
    rows: dict[str, list[str]] = {name: [] for name in A1111_SAMPLERS}
    for ours in known["schedulers"]:
        rows.setdefault(a1111_sampler(ours), []).append(ours)
    for name, aliases in rows.items():
        match = match_sampler(name)
        if match is not None and match.scheduler and match.scheduler not in aliases:
            aliases.append(match.scheduler)
    return json_response(
        [{"name": name, "aliases": aliases, "options": {}} for name, aliases in rows.items()]
    )


async def schedulers(front: Front, http: Request) -> Response:
    """List the schedule types by A1111's names."""
    rows: list[dict[str, Any]] = []
    for label in A1111_SCHEDULES:
        match = match_schedule(label)
        ours = match[0] if match is not None else None
        rows.append(
            {
                "name": label.lower().replace(" ", "_"),
                "label": label,
                "aliases": [ours] if ours else None,
                "default_rho": 7.0 if label == "Karras" else -1.0,
                "need_inner_model": False,
            }
        )
    return json_response(rows)


async def sd_models(front: Front, http: Request) -> Response:
    """List the models."""
    return json_response(
        [
            {
                "title": model_title(m),
                "model_name": _name(m),
                "hash": m["digest"][:10],
                "sha256": m["digest"],
                "filename": m["path"] or _name(m),
                "config": None,
            }
            for m in await front.service.models()
        ]
    )


async def upscaler_names(front: Front) -> tuple[str, ...]:
    """Return the names of the upscalers, Lanczos first."""
    known = (await front.service.capabilities())["upscalers"]
    return ("Lanczos", *(name for name in known if name != "lanczos"))


async def upscalers(front: Front, http: Request) -> Response:
    """List the upscalers."""
    empty = {"model_name": None, "model_path": None, "model_url": None, "scale": 4.0}
    return json_response(
        [{"name": name, **empty} for name in ("None", *(await upscaler_names(front)))]
    )


async def loras(front: Front, http: Request) -> Response:
    """List the LoRAs."""
    known = (await front.capabilities(http))["loras"]
    return json_response([{"name": n, "alias": n, "path": n, "metadata": {}} for n in known])


async def scripts(front: Front, http: Request) -> Response:
    """List the scripts in lower case, as A1111 does; ControlNet is built in."""
    return json_response(
        {kind: [*(n.lower() for n in names), "controlnet"] for kind, names in SCRIPTS.items()}
    )


async def script_info(front: Front, http: Request) -> Response:
    """Describe the scripts."""
    common: dict[str, Any] = {"name": "controlnet", "is_alwayson": True, "args": []}
    rows = [{**common, "is_img2img": flag} for flag in (False, True)]
    offered = (row for flag in (False, True) for row in script_infos(is_img2img=flag))
    return json_response([*rows, *offered])


async def controlnet_models(front: Front, http: Request) -> Response:
    """List the ControlNets."""
    return json_response({"model_list": list((await front.capabilities(http))["controls"])})


async def controlnet_version(front: Front, http: Request) -> Response:
    """Tell the version of the ControlNet API that is spoken here."""
    return json_response({"version": _CONTROLNET_API})


async def controlnet_modules(front: Front, http: Request) -> Response:
    """List the preprocessors of control pictures."""
    return json_response({"module_list": list(A1111_MODULES), "module_detail": {}})


async def cmd_flags(front: Front, http: Request) -> Response:
    """Show flags that clients look at."""
    return json_response(
        {
            "api": True,
            "nowebui": False,
            "listen": False,
            "port": front.config.port,
            "api_auth": None,
            "no_half": True,
            "use_cpu": [],
            "ckpt": None,
            "data_path": "",
        }
    )


async def memory(front: Front, http: Request) -> Response:
    """Show the machine's memory in bytes, to keys that manage."""
    ram: dict[str, Any] = {"error": "the memory of the machine is for keys that manage"}
    if visit(http).caller.manages:
        free, total = machine_memory() or (0.0, 0.0)
        ram = {"free": int(free), "used": int(total - free), "total": int(total)}
    return json_response({"ram": ram, "cuda": {"error": "no cuda device"}})


async def embeddings(front: Front, http: Request) -> Response:
    """List textual inversions; their names stand for them in prompts."""
    known = (await front.capabilities(http)).get("embeddings", ())
    unread = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
    return json_response({"loaded": {name: unread for name in known}, "skipped": {}})


async def nothing(front: Front, http: Request) -> Response:
    """List something that Mezzotint does not have."""
    return json_response([])


async def latent_modes(front: Front, http: Request) -> Response:
    """List the latent upscale modes."""
    return json_response([{"name": "Latent"}])


async def refresh(front: Front, http: Request) -> Response:
    """Look for new models: the list is always fresh."""
    return json_response(None)


async def unload_checkpoint(front: Front, http: Request) -> Response:
    """Let every model go from memory that nobody uses, for keys that manage."""
    if not visit(http).caller.manages:
        return json_response({"warnings": [_NOT_YOURS]})
    return json_response({"warnings": await front.free_models()})


async def reload_checkpoint(front: Front, http: Request) -> Response:
    """Bring the chosen checkpoint into memory, for keys that manage."""
    if not visit(http).caller.manages:
        return json_response({"warnings": [_NOT_YOURS]})
    title = (await _with_checkpoint(front, http))["sd_model_checkpoint"]
    if title:  # else there is no model at all
        await front.service.load(await find_checkpoint(front, title))
        front.forget_models()
    return json_response({"warnings": []})


async def not_offered(front: Front, http: Request) -> Response:
    """Refuse, by its name, what is not done over this API.

    Raises:
        Unsupported: Always.
    """
    path = http.scope["path"].removeprefix("/sdapi/v1/")
    raise Unsupported(f"{path} is not offered here: {_ELSEWHERE[re.split(r'[/-]', path)[0]]}")


async def sysinfo(front: Front, http: Request) -> Response:
    """Show platform and version."""
    return json_response(
        {"Platform": platform.platform(), "Version": str(front.memory.get("version", ""))}
    )


_CONTROLNET_API = 3
_NOT_YOURS = "which models stay in memory is for keys that manage: nothing was done"
_ELSEWHERE = {
    "create": "embeddings and LoRAs are trained by `mezzotint train`",
    "train": "training is `mezzotint train`",
    "server": "the server is stopped by its operator, with SIGTERM",
}


def _get(path: str, handler: Any, summary: str) -> Endpoint:
    return Endpoint(
        method="GET", path=f"/sdapi/v1/{path}", handler=handler, summary=f"A1111: {summary}"
    )


ENDPOINTS: tuple[Endpoint, ...] = (
    _get("options", get_options, "options"),
    Endpoint(
        method="POST",
        path="/sdapi/v1/options",
        handler=set_options,
        summary="A1111: set options",
        body=Body("A1111Options", lambda _: ANY_OBJECT),
    ),
    _get("samplers", samplers, "samplers"),
    _get("schedulers", schedulers, "schedule types"),
    _get("sd-models", sd_models, "models"),
    _get("sd-vae", nothing, "VAEs"),
    _get("sd-modules", nothing, "modules"),
    _get("loras", loras, "LoRAs"),
    _get("upscalers", upscalers, "upscalers"),
    _get("latent-upscale-modes", latent_modes, "latent upscale modes"),
    _get("hypernetworks", nothing, "hypernetworks"),
    _get("face-restorers", nothing, "face restorers"),
    _get("realesrgan-models", nothing, "Real-ESRGAN models"),
    _get("embeddings", embeddings, "embeddings"),
    _get("prompt-styles", nothing, "styles"),
    _get("artist-categories", nothing, "artist categories"),
    _get("artists", nothing, "artists"),
    _get("extensions", nothing, "extensions"),
    _get("scripts", scripts, "scripts"),
    _get("script-info", script_info, "scripts in detail"),
    _get("cmd-flags", cmd_flags, "flags"),
    _get("memory", memory, "memory"),
    _get("sysinfo", sysinfo, "platform"),
    Endpoint(
        method="GET",
        path="/controlnet/version",
        handler=controlnet_version,
        summary="A1111: version of the ControlNet API",
    ),
    Endpoint(
        method="GET",
        path="/controlnet/model_list",
        handler=controlnet_models,
        summary="A1111: ControlNets",
    ),
    Endpoint(
        method="GET",
        path="/controlnet/module_list",
        handler=controlnet_modules,
        summary="A1111: preprocessors of control pictures",
    ),
    Endpoint(
        method="POST",
        path="/sdapi/v1/unload-checkpoint",
        handler=unload_checkpoint,
        summary="A1111: free the memory of models",
    ),
    Endpoint(
        method="POST",
        path="/sdapi/v1/reload-checkpoint",
        handler=reload_checkpoint,
        summary="A1111: bring the checkpoint into memory",
    ),
    *(
        Endpoint(
            method="POST",
            path=f"/sdapi/v1/{path}",
            handler=not_offered,
            summary="A1111: not offered",
        )
        for path in (
            "create/embedding",
            "create/hypernetwork",
            "train/embedding",
            "train/hypernetwork",
            "server-kill",
            "server-restart",
            "server-stop",
        )
    ),
    *(
        Endpoint(
            method="POST",
            path=f"/sdapi/v1/{path}",
            handler=refresh,
            summary="A1111: look for new files",
        )
        for path in ("refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings")
    ),
)
