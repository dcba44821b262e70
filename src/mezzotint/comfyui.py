"""ComfyUI graphs: what a graph in API format asks for, in the words of our request.

One reading for the HTTP door and for pictures that carry their graph. A graph is walked
from its outputs: the nodes of text to image and image to image that have a field here are
understood, every other one is refused by its name.

Source: the API format of ComfyUI, ``{id: {"class_type", "inputs"}}``, where an input is a
value or a link ``[id, output]``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from mezzotint.errors import InvalidRequest
from mezzotint.vocabulary import match_sampler, match_schedule

__all__ = ["NODES", "UNION_TYPES", "Graph", "GraphError", "NodeFault", "read_graph"]

NODES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "CheckpointLoaderSimple": (("ckpt_name",), ("MODEL", "CLIP", "VAE")),
    "CLIPSetLastLayer": (("clip", "stop_at_clip_layer"), ("CLIP",)),
    "CLIPTextEncode": (("clip", "text"), ("CONDITIONING",)),
    "ConditioningZeroOut": (("conditioning",), ("CONDITIONING",)),
    "ControlNetApply": (("conditioning", "control_net", "image", "strength"), ("CONDITIONING",)),
    "ControlNetApplyAdvanced": (
        (
            "positive", "negative", "control_net", "image", "strength", "start_percent",
            "end_percent",
        ),
        ("CONDITIONING", "CONDITIONING"),
    ),
    "ControlNetLoader": (("control_net_name",), ("CONTROL_NET",)),
    "EmptyLatentImage": (("width", "height", "batch_size"), ("LATENT",)),
    "EmptySD3LatentImage": (("width", "height", "batch_size"), ("LATENT",)),
    "KSampler": (
        (
            "model", "positive", "negative", "latent_image", "seed", "steps", "cfg",
            "sampler_name", "scheduler", "denoise",
        ),
        ("LATENT",),
    ),
    "KSamplerAdvanced": (
        (
            "model", "positive", "negative", "latent_image", "add_noise", "noise_seed", "steps",
            "cfg", "sampler_name", "scheduler", "start_at_step", "end_at_step",
            "return_with_leftover_noise",
        ),
        ("LATENT",),
    ),
    "LoadImage": (("image",), ("IMAGE", "MASK")),
    "LoadImageMask": (("image", "channel"), ("MASK",)),
    "LoraLoader": (
        ("model", "clip", "lora_name", "strength_model", "strength_clip"), ("MODEL", "CLIP"),
    ),
    "LoraLoaderModelOnly": (("model", "lora_name", "strength_model"), ("MODEL",)),
    "PreviewImage": (("images",), ()),
    "SaveImage": (("images", "filename_prefix"), ()),
    "SetLatentNoiseMask": (("samples", "mask"), ("LATENT",)),
    "SetUnionControlNetType": (("control_net", "type"), ("CONTROL_NET",)),
    "VAEDecode": (("samples", "vae"), ("IMAGE",)),
    "VAEEncode": (("pixels", "vae"), ("LATENT",)),
    "VAEEncodeForInpaint": (("pixels", "vae", "mask", "grow_mask_by"), ("LATENT",)),
    "VAELoader": (("vae_name",), ("VAE",)),
}  # fmt: skip
"""Nodes that are understood: names of their inputs and kinds of their outputs."""

UNION_TYPES = (
    "openpose", "depth", "hed/pidi/scribble/ted", "canny/lineart/anime_lineart/mlsd", "normal",
    "segment", "tile", "repaint",
)  # fmt: skip
"""What a union of ControlNets follows, by its number."""

_OUTPUTS = ("SaveImage", "PreviewImage")
_SAMPLERS = ("KSampler", "KSamplerAdvanced")
_EMPTY = ("EmptyLatentImage", "EmptySD3LatentImage")
_ENCODED = ("VAEEncode", "VAEEncodeForInpaint")
_FILE = re.compile(r"\.(safetensors|ckpt|sft|pth?)$")
_MOST_NODES = 500
_MOST_STEPS = 10_000  # of ComfyUI's own nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFault:
    """What is wrong with one node.

    Args:
        node: Its id.
        kind: ComfyUI's word for the error, e.g. ``value_not_in_list``.
        message: One sentence for people.
        input: The input at fault, "" if it is the node itself.
        value: What came, as a short text.
    """

    node: str
    kind: str
    message: str
    input: str = ""
    value: str = ""


class GraphError(InvalidRequest):
    """A graph that cannot be run here; ``faults`` names the nodes."""

    def __init__(self, message: str, faults: tuple[NodeFault, ...] = ()) -> None:
        super().__init__(message, field="prompt")
        self.faults = faults


@dataclass(slots=True)
class Graph:
    """What a graph asks for.

    Args:
        fields: Plain fields of a request, pictures excepted.
        pictures: Names of the pictures that nodes load: ``"image"``, ``"mask"``, or
            ``controls`` with their number, to the name.
        mask_channel: What of the mask's picture says where to repaint: ``alpha`` (where it is
            transparent) or a colour (where that is bright).
        places: Field of the request -> node and input that say it.
        outputs: Nodes that keep pictures, in order.
        sampler: The node that samples.
        warnings: What is honoured in another way than there, one sentence each.
    """

    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    pictures: dict[str, str] = field(default_factory=dict[str, str])
    places: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    mask_channel: str = "alpha"
    outputs: tuple[str, ...] = ()
    sampler: str = ""
    warnings: list[str] = field(default_factory=list[str])


def read_graph(nodes: object) -> Graph:
    """Read a graph in API format.

    Args:
        nodes: Plain data, from anybody.

    Returns:
        What it asks for.

    Raises:
        GraphError: If it is no graph, has nodes that are not understood, or asks for what
            one request cannot do.
    """
    return _Reader(_checked(nodes)).read()


def _checked(nodes: object) -> dict[str, dict[str, Any]]:
    """Return a graph of nodes that are all known by their names.

    Raises:
        GraphError: If it is none.
    """
    if not isinstance(nodes, Mapping) or not nodes:
        raise GraphError("the graph must be an object of nodes by id, in API format")
    given = cast("Mapping[object, Any]", nodes)
    if len(given) > _MOST_NODES:
        raise GraphError(f"the graph must have at most {_MOST_NODES} nodes, got {len(given)}")
    found: dict[str, dict[str, Any]] = {}
    unknown: list[NodeFault] = []
    for id_, entry in given.items():
        node = cast("Mapping[str, Any]", entry if isinstance(entry, Mapping) else {})
        name = node.get("class_type")
        if not isinstance(name, str):
            raise GraphError(f"node {str(id_)[:40]} has no class_type: send the API format")
        if not isinstance(node.get("inputs"), Mapping):
            raise GraphError(f"node {str(id_)[:40]} has no inputs")
        if name not in NODES:
            text = f"Node '{name[:80]}' not found. The custom node may not be installed."
            fault = NodeFault(node=str(id_), kind="missing_node_type", message=text)
            unknown.append(fault)
        found[str(id_)] = dict(node)
    if unknown:
        names = sorted({found[fault.node]["class_type"][:80] for fault in unknown})
        raise GraphError(f"these nodes are not offered here: {', '.join(names)}", tuple(unknown))
    return found


class _Reader:
    """Walks one graph from its outputs."""

    def __init__(self, nodes: dict[str, dict[str, Any]]) -> None:
        self._nodes = nodes
        self._graph = Graph()

    def read(self) -> Graph:
        """Walk it."""
        graph = self._graph
        graph.outputs = tuple(i for i, n in self._nodes.items() if n["class_type"] in _OUTPUTS)
        if not graph.outputs:
            raise GraphError("Prompt has no outputs")
        samplers: set[str] = set()
        for output in graph.outputs:
            decode = self._link(output, "images", ("VAEDecode",))
            self._vae(decode)
            samplers.add(self._link(decode, "samples", _SAMPLERS))
        others = [i for i, n in self._nodes.items() if n["class_type"] in _SAMPLERS]
        if len(samplers) > 1 or len(others) > 1:
            raise self._fault(others[-1], "a graph samples once here: send one graph for each")
        graph.sampler = samplers.pop()
        self._sampler(graph.sampler)
        return graph

    def _sampler(self, node: str) -> None:
        """Read a sampler and what leads to it."""
        graph = self._graph
        self._model(node)
        positive = self._conditioning(node, "positive")
        negative = self._conditioning(node, "negative")
        self._say("prompt", positive, "text", self._text(positive))
        if self._nodes[negative]["class_type"] == "ConditioningZeroOut":
            if self._text(self._link(negative, "conditioning", ("CLIPTextEncode",))):
                graph.warnings.append("ConditioningZeroOut is read as an empty negative prompt")
        else:
            self._say("negative_prompt", negative, "text", self._text(negative))
        texts = f"{graph.fields['prompt']}{graph.fields.get('negative_prompt', '')}"
        if re.search(r"[()\\]", texts):
            graph.fields["prompt_dialect"] = "comfyui"
        is_advanced = self._nodes[node]["class_type"] == "KSamplerAdvanced"
        seed = "noise_seed" if is_advanced else "seed"
        self._say("seed", node, seed, self._whole(node, seed))
        self._say("guidance_scale", node, "cfg", self._number(node, "cfg"))
        self._names(node)
        steps = self._whole(node, "steps")
        if not 1 <= steps <= _MOST_STEPS:
            kind = "value_smaller_than_min" if steps < 1 else "value_bigger_than_max"
            text = f"steps must be 1 to {_MOST_STEPS}, got {steps}"
            raise self._fault(node, text, "steps", steps, kind=kind)
        if is_advanced:
            strength, total = self._advanced(node, steps), steps
        else:
            strength = self._number(node, "denoise", 1.0)
            if not 0 < strength <= 1:
                kind = "value_bigger_than_max" if strength > 1 else "value_smaller_than_min"
                text = f"denoise must be above 0, 1 at most, got {strength:g}"
                raise self._fault(node, text, "denoise", strength, kind=kind)
            # ComfyUI runs all of its steps on the last part of a longer schedule
            total = int(steps / strength)
        self._latent(node, strength)
        self._say("num_inference_steps", node, "steps", total)

    def _advanced(self, node: str, steps: int) -> float:
        """Return the share of the steps that an advanced sampler runs."""
        inputs = self._nodes[node]["inputs"]
        for name, only in (("add_noise", "enable"), ("return_with_leftover_noise", "disable")):
            if inputs.get(name, only) != only:
                text, kind = f"{name} must be {only} here", "value_not_in_list"
                raise self._fault(node, text, name, inputs[name], kind=kind)
        start = self._whole(node, "start_at_step", 0)
        end = self._whole(node, "end_at_step", _MOST_STEPS)
        if end < steps:
            raise self._fault(node, "end_at_step must not end before steps", "end_at_step", end)
        if not 0 <= start < steps:
            raise self._fault(node, "start_at_step must be below steps", "start_at_step", start)
        return (steps - start) / steps

    def _names(self, node: str) -> None:
        """Read sampler and schedule by ComfyUI's names."""
        fields, warnings = self._graph.fields, self._graph.warnings
        name = self._words(node, "sampler_name")
        match = match_sampler(name)
        if match is None:
            text = f"no such sampler: {name[:40]}"
            raise self._fault(node, text, "sampler_name", name, kind="value_not_in_list")
        if not match.exact:
            warnings.append(f"sampler {name} is not offered here; {match.scheduler} is used")
        self._say("scheduler", node, "sampler_name", match.scheduler)
        name = self._words(node, "scheduler")
        schedule = match_schedule(name)
        if schedule is None:
            text = f"no such scheduler: {name[:40]}"
            raise self._fault(node, text, "scheduler", name, kind="value_not_in_list")
        if not schedule[1]:
            warnings.append(f"scheduler {name} is not offered here; {schedule[0]} is used")
        if schedule[0] is not None:
            self._say("sigma_schedule", node, "scheduler", schedule[0])
        fields.setdefault("loras", [])

    def _latent(self, node: str, strength: float) -> None:
        """Read what a sampler begins from."""
        graph = self._graph
        start = self._link(node, "latent_image", (*_EMPTY, *_ENCODED, "SetLatentNoiseMask"))
        if self._nodes[start]["class_type"] == "SetLatentNoiseMask":
            self._mask(start)
            start = self._link(start, "samples", ("VAEEncode",))
        elif self._nodes[start]["class_type"] == "VAEEncodeForInpaint":
            self._mask(start)
            if self._whole(start, "grow_mask_by", 6):
                graph.warnings.append(
                    "grow_mask_by is not offered here; the mask is taken as it is"
                )
        if self._nodes[start]["class_type"] in _ENCODED:
            self._vae(start)
            picture = self._link(start, "pixels", ("LoadImage",))
            graph.pictures["image"] = self._words(picture, "image")
            graph.places["image"] = picture, "image"
            self._say("strength", node, "denoise", strength)
            return
        if strength != 1:
            raise self._fault(node, "less than all of the steps needs a VAEEncode", "latent_image")
        for name, ours in (("width", "width"), ("height", "height"), ("batch_size", "num_images")):
            self._say(
                ours, start, name, self._whole(start, name, 1 if ours == "num_images" else None)
            )

    def _mask(self, node: str) -> None:
        """Read where to repaint."""
        graph = self._graph
        picture = self._link(node, "mask", ("LoadImage", "LoadImageMask"))
        graph.pictures["mask"] = self._words(picture, "image")
        graph.places["mask"] = picture, "image"
        if self._nodes[picture]["class_type"] == "LoadImageMask":
            graph.mask_channel = self._words(picture, "channel")
            if graph.mask_channel not in ("alpha", "red", "green", "blue"):
                text = f"channel must be alpha, red, green or blue, got {graph.mask_channel[:40]}"
                raise self._fault(picture, text, "channel", graph.mask_channel)

    def _model(self, node: str) -> None:
        """Read the model of a sampler, and the LoRAs on the way to it."""
        loras: list[dict[str, Any]] = []
        at, kinds = node, ("CheckpointLoaderSimple", "LoraLoader", "LoraLoaderModelOnly")
        for _ in self._nodes:
            at = self._link(at, "model", kinds)
            if self._nodes[at]["class_type"] == "CheckpointLoaderSimple":
                self._say("model", at, "ckpt_name", _FILE.sub("", self._words(at, "ckpt_name")))
                self._say("loras", node, "model", loras[::-1])
                return
            scale = self._number(at, "strength_model", 1.0)
            is_both = self._nodes[at]["class_type"] == "LoraLoader"
            if is_both and self._number(at, "strength_clip", scale) != scale:
                text = "strength_clip must be strength_model here"
                raise self._fault(at, text, "strength_clip")
            name = _FILE.sub("", self._words(at, "lora_name"))
            loras.append({"name": name, "scale": scale})
            self._graph.places["loras"] = at, "lora_name"
        raise self._fault(at, "the graph leads in a circle", "model")

    def _conditioning(self, node: str, name: str) -> str:
        """Return the text node at the end of a conditioning, reading ControlNets on the way."""
        kinds = (
            "CLIPTextEncode",
            "ConditioningZeroOut",
            "ControlNetApply",
            "ControlNetApplyAdvanced",
        )
        at, input_ = node, name
        for _ in self._nodes:
            at = self._link(at, input_, kinds)
            kind = self._nodes[at]["class_type"]
            if not kind.startswith("ControlNet"):
                if kind == "ConditioningZeroOut" and name == "positive":
                    raise self._fault(at, "a positive prompt cannot be ConditioningZeroOut here")
                return at
            input_ = "conditioning" if kind == "ControlNetApply" else name
            if name == "positive":
                self._control(at)
        raise self._fault(at, "the graph leads in a circle", name)

    def _control(self, node: str) -> None:
        """Read a ControlNet."""
        loader = self._link(node, "control_net", ("ControlNetLoader", "SetUnionControlNetType"))
        mode = None
        if self._nodes[loader]["class_type"] == "SetUnionControlNetType":
            mode = self._union_type(loader)
            loader = self._link(loader, "control_net", ("ControlNetLoader",))
        picture = self._link(node, "image", ("LoadImage",))
        control: dict[str, Any] = {
            "model": _FILE.sub("", self._words(loader, "control_net_name")),
            "scale": self._number(node, "strength", 1.0),
        }
        if mode is not None:
            control["mode"] = mode
        if self._nodes[node]["class_type"] == "ControlNetApplyAdvanced":
            control["start"] = self._number(node, "start_percent", 0.0)
            control["end"] = self._number(node, "end_percent", 1.0)
        controls = self._graph.fields.setdefault("controls", [])
        self._graph.pictures[f"controls.{len(controls)}"] = self._words(picture, "image")
        self._graph.places["controls"] = loader, "control_net_name"
        controls.append(control)

    def _union_type(self, node: str) -> int | None:
        """Return what a union of ControlNets follows, None where it is left to it."""
        name = self._words(node, "type")
        if name == "auto":
            return None
        if name not in UNION_TYPES:
            text = f"no such type: {name[:40]}"
            raise self._fault(node, text, "type", name, kind="value_not_in_list")
        return UNION_TYPES.index(name)

    def _text(self, node: str) -> str:
        """Return the text of a text node, whose CLIP has to be the whole one."""
        at = node
        for _ in self._nodes:
            at = self._link(
                at, "clip", ("CheckpointLoaderSimple", "LoraLoader", "CLIPSetLastLayer")
            )
            kind = self._nodes[at]["class_type"]
            if kind == "CheckpointLoaderSimple":
                return self._words(node, "text")
            last = self._whole(at, "stop_at_clip_layer", -1) if kind == "CLIPSetLastLayer" else -1
            if last != -1:
                text = "stop_at_clip_layer must be -1 here: a model keeps its own last layer"
                kind = "value_smaller_than_min" if last < -1 else "value_bigger_than_max"
                raise self._fault(at, text, "stop_at_clip_layer", last, kind=kind)
        raise self._fault(at, "the graph leads in a circle", "clip")

    def _vae(self, node: str) -> None:
        """Refuse a VAE that is not the model's own."""
        vae = self._link(node, "vae", ("CheckpointLoaderSimple", "VAELoader"))
        if self._nodes[vae]["class_type"] == "VAELoader":
            raise self._fault(vae, "a model keeps its own VAE here: take it from the checkpoint")

    def _say(self, name: str, node: str, input_: str, value: Any) -> None:
        self._graph.fields[name] = value
        self._graph.places.setdefault(name, (node, input_))

    def _link(self, node: str, name: str, kinds: tuple[str, ...]) -> str:
        """Return the node that an input is linked to.

        Raises:
            GraphError: If it is linked to nothing, or to a node of another class.
        """
        value = self._nodes[node]["inputs"].get(name)
        link = cast("list[Any]", value) if isinstance(value, list) else []
        if len(link) != 2 or str(link[0]) not in self._nodes:
            kind = "required_input_missing" if value is None else "bad_linked_input"
            raise self._fault(node, f"{name} must be linked to {_either(kinds)}", name, kind=kind)
        other = str(link[0])
        got = self._nodes[other]["class_type"]
        if got not in kinds:
            text = f"{name} must come from {_either(kinds)} here, not from {got}"
            raise self._fault(node, text, name, got, kind="return_type_mismatch")
        count = len(NODES[got][1])
        if isinstance(link[1], bool) or link[1] not in range(count):
            text = f"{name} must be linked to an output of {got}, 0 to {count - 1}"
            raise self._fault(node, text, name, link[1], kind="bad_linked_input")
        return other

    def _words(self, node: str, name: str) -> str:
        value = self._nodes[node]["inputs"].get(name)
        if not isinstance(value, str):
            raise self._fault(node, f"{name} must be a text", name, value, kind=_kind(value))
        return value

    def _number(self, node: str, name: str, default: float | None = None) -> float:
        value = self._nodes[node]["inputs"].get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._fault(node, f"{name} must be a number", name, value, kind=_kind(value))
        return float(value)

    def _whole(self, node: str, name: str, default: int | None = None) -> int:
        value = self._nodes[node]["inputs"].get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            text = f"{name} must be a whole number"
            raise self._fault(node, text, name, value, kind=_kind(value))
        return value

    def _fault(
        self,
        node: str,
        message: str,
        input_: str = "",
        value: object = "",
        *,
        kind: str = "custom_validation_failed",
    ) -> GraphError:
        """Return the error that names one node."""
        name = self._nodes[node]["class_type"]
        fault = NodeFault(
            node=node, kind=kind, message=message, input=input_, value=str(value)[:80]
        )
        return GraphError(f"{name} (node {node[:40]}): {message}", (fault,))


def _either(kinds: tuple[str, ...]) -> str:
    return " or ".join(kinds)


def _kind(value: object) -> str:
    return "required_input_missing" if value is None else "invalid_input_type"
