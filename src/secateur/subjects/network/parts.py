"""A part of a model of several, such as its vision tower or its projector: cut as a network, put back in its place.

What the part gets is recorded while the whole runs, or while it looks at an image: so the part is analysed by itself,
and as all that it takes and gives stays as wide as it is, the rest of the whole goes on as it was.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from secateur._utils import devices
from secateur._utils.modes import evaluating
from secateur._utils.outputs import leaves
from secateur.errors import InputError, UnsupportedError
from secateur.subjects.network import pretrained
from secateur.subjects.network.opening import NetworkSource, open_network
from secateur.subjects.network.recording import Example, tensors_of
from secateur.subjects.network.shrinking import History, history, remember, twin
from secateur.subjects.network.traced import Traced, open_traced

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Whole", "assemble", "find_path", "find_shared", "list_inputs", "open_part"]

_PROJECTOR = "projector"
_CODERS: Mapping[str, Callable[[Any], object]] = {
    "vision_tower": lambda model: model.get_encoder(modality="image"),
    "audio_tower": lambda model: model.get_encoder(modality="audio"),
    "language_model": lambda model: model.get_decoder(),
}
"""What parts are called, whatever a class of transformers calls them: how it finds them itself."""


@dataclass(frozen=True, eq=False)
class Whole:
    """The network that a part was taken from, which stays as it is, and where the part stands in it."""

    network: Traced
    path: str

    def __deepcopy__(self, memo: object) -> Whole:
        return self


def open_part(source: NetworkSource, name: str, inputs: object = None) -> Traced:
    """The part `name` of a network as something to prune; `assemble` puts what a cut leaves of it into the whole.

    source, inputs: of the whole, as `opening.open_network` takes them. name: see `find_path`. Weights that other parts
    share stay. Raises `InputError` for a part that is not there, `UnsupportedError` for one that nothing reaches.
    """
    whole = open_network(source, inputs, _make_inputs)
    path = find_path(whole.model, name)
    part = twin(whole.model.get_submodule(path))
    part.register_forward_hook(_list_outputs)
    subject = Traced(part, _record_inputs(whole, path))
    inside = {f"{path}.{inner}": inner for inner in tensors_of(part)}
    shared = [inside[first] for first, _ in find_shared(whole.model, inside)]
    subject.protect(shared, "another part shares it")
    subject.protect(_find_streams(subject), "its layers add to it, and its hidden size stays")
    subject = open_traced(subject)
    remember(subject.model, History(built_by=history(whole.model).built_by, whole=Whole(whole, path)))
    return subject


def assemble(subject: Traced, *, share: bool = False) -> Traced:
    """The whole with the part `subject` in its place, cuts and config included; what `open_part` took stays as it is.

    share: the other weights are those of the whole, and no copies. Weights of the whole that are one with some of the
    part stay so. What is no part is returned itself.
    """
    whole = history(subject.model).whole
    if whole is None:
        return subject
    before, plans = whole.network.model, [plan.within(whole.path) for plan in subject.plans]
    part, small = before.get_submodule(whole.path), twin(subject.model)
    remember(small, History())
    small._forward_hooks = copy.copy(part._forward_hooks)
    memo: dict[int, object] = {id(part): small}
    memo |= {id(config): small.config for config in _list_configs(before, part)}
    memo |= {id(tensor): tensor for tensor in tensors_of(before).values()} if share else {}
    inside, whole_weights = tensors_of(small), dict(before.named_parameters(remove_duplicate=False))
    shared = find_shared(before, {f"{whole.path}.{inner}" for inner in inside})
    memo |= {id(whole_weights[second]): inside[first.removeprefix(f"{whole.path}.")] for first, second in shared}
    model, said = copy.deepcopy(before, memo), history(before)
    remember(model, replace(said, plans=(*said.plans, *plans), channels=None))
    return Traced(model, whole.network.inputs)


def find_path(model: nn.Module, name: str) -> str:
    """The path of the module that is meant by `name`.

    Its name or the end of its path, what the whole's config calls its configuration, or what such parts are called:
    vision_tower, audio_tower, language_model and projector, whatever their class calls them. Raises `InputError` where
    none is there, or several are.
    """
    paths = {path: module for path, module in model.named_modules() if path}
    found = [path for path in paths if path == name or path.endswith(f".{name}")]
    least = min((path.count(".") for path in found), default=0)
    found = [path for path in found if path.count(".") == least]
    config = getattr(getattr(model, "config", None), name, None)
    if not found and config is not None:
        found = [path for path, module in paths.items() if getattr(module, "config", None) is config][:1]
    meant = dict[str, str]()
    for kind, ask in _CODERS.items() if hasattr(model, "get_encoder") else ():
        coder = ask(model)
        meant[kind] = next((path for path, module in paths.items() if module is coder), "")
    if not found and meant.get(name):
        found = [meant[name]]
    there = _list_names(model)
    if not found and name == _PROJECTOR and (meant.get("vision_tower") or meant.get("audio_tower")):
        found = [path for path in there if not _is_model(paths[path], [paths.get(coder) for coder in meant.values()])]
    if len(found) != 1:
        names = [path.rpartition(".")[2] for path in there] + [kind for kind, path in meant.items() if path]
        listed = ", ".join(dict.fromkeys(names)) or "none"
        several = f"{len(found)} parts called {name!r}, {', '.join(found[:3])}: name one by its path" if found else ""
        raise InputError(f"{type(model).__name__} has {several or f'no part {name!r}: it has {listed}'}")
    return str(found[0])


def _is_model(module: nn.Module, coders: Sequence[nn.Module | None]) -> bool:
    """Whether it is a model by itself, such as a Q-Former, or holds one of `coders`: then it is no projector."""
    return hasattr(module, "save_pretrained") or any(one is coder for one in module.modules() for coder in coders)


def _list_outputs(module: nn.Module, inputs: object, output: object) -> object:
    """All tensors that the part gives: the whole may read any, also those beside the main one."""
    main, side = leaves(output)
    return output if isinstance(output, Tensor) else (*main, *side)


def _find_streams(subject: Traced) -> list[str]:
    """Sites of channels to which several layers of a list add: a hidden size, as the rest of the whole knows it.

    Or a layer and what comes before it, where there is but one.
    """
    found, tensors = [], tensors_of(subject.model)
    for name, site in subject.coupling.sites.items():
        writers: dict[str, set[str]] = {}
        within = set[bool]()
        for axis, _ in site.axes:
            if axis.dim != 0 or tensors[axis.tensor].dim() < 2:
                continue
            # Lists may stand in layers of others, as blocks in stages; and layers be attributes, layer1 and layer2.
            numbers = list(re.finditer(r"(?:^\D*|\.)(\d+)(?=\.)", axis.tensor))
            for number in numbers:
                writers.setdefault(axis.tensor[: number.start(1)], set()).add(number[1])
            layers = (subject.model.get_submodule(axis.tensor[: number.end()]) for number in numbers)
            within.add(any(True for layer in layers for _ in layer.children()))
        if len(within) == 2 or any(len(numbers) > 1 for numbers in writers.values()):
            found.append(name)
    return found


def _list_names(model: nn.Module) -> list[str]:
    """Paths of the outermost modules, below those that hold nearly all, that hold others with weights."""
    base = getattr(model, "base_model", model)
    start = next((f"{path}." for path, module in model.named_modules() if module is base and path), "")
    return [
        f"{start}{name}"
        for name, module in base.named_children()
        if any(True for _ in module.children()) and any(True for _ in module.parameters())
    ]


def _list_configs(model: nn.Module, part: nn.Module) -> list[object]:
    """The configs in `model` that speak of `part`: its own, and the one that the whole's holds."""
    own, whole = getattr(part, "config", None), getattr(model, "config", None)
    if own is None or not isinstance(part, nn.Module) or not hasattr(part, "save_pretrained"):
        return []
    held = [value for value in vars(whole).values() if type(value) is type(own)]
    held = [value for value in held if value is own] or held[:1]
    return [own, *held]


def find_shared(model: nn.Module, inside: Container[str]) -> Iterator[tuple[str, str]]:
    """Pairs of tensors, the first of them among those `inside` a part, that are one."""
    owners: dict[int, str] = {}
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in named.items():
        if name in inside:
            owners[_place_of(tensor)] = name
    for name, tensor in named.items():
        if name not in inside and _place_of(tensor) in owners:
            yield owners[_place_of(tensor)], name


def _place_of(tensor: Tensor) -> int:
    """Where a tensor's numbers lie; which one it is, where they are somewhere else (offloaded)."""
    return id(tensor) if tensor.is_meta else tensor.data_ptr()


# ------------------------------------------------------------------------------------------------------------- inputs


def _make_inputs(model: nn.Module) -> object:
    """Those of a model of transformers that was given without any; None of another network."""
    return pretrained.make_inputs(cast("PreTrainedModel", model)) if hasattr(model, "main_input_name") else None


class _ReachedError(Exception):
    """Ends a pass at the part."""


def _record_inputs(whole: Traced, path: str) -> Example:
    """What the part at `path` gets as the whole runs on its example inputs, or looks at an image, or listens.

    Raises `UnsupportedError` where no such pass reaches the part, or it does not run by itself on what it gets.
    """
    model, part = whole.model, whole.model.get_submodule(path)
    for example in list_inputs(whole, path):
        args, kwargs = example.fresh(part)
        with suppress(Exception), torch.no_grad(), evaluating(part):
            part(*args, **kwargs)
            return example
    raise UnsupportedError(
        f"{path} of {type(model).__name__} is not reached by what was drawn for it, images and texts: give "
        "example_inputs with which the whole model runs it, to secateur.prune"
    )


def list_inputs(whole: Traced, path: str) -> Iterator[Example]:
    """What such passes give the part, which need not run on it."""
    model, part = whole.model, whole.model.get_submodule(path)
    for ask in _list_passes(whole):
        example = _record(model, part, ask)
        if example is not None:
            yield example


def _record(model: nn.Module, part: nn.Module, ask: Callable[[], object]) -> Example | None:
    caught: list[Example] = []

    def catch(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        caught.append(Example(*tree_map_only(Tensor, lambda one: one.detach().clone(), (args, kwargs))))
        raise _ReachedError

    handle = part.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with suppress(Exception), torch.no_grad(), evaluating(model):  # whatever a class says against these inputs
            ask()
    finally:
        handle.remove()
    return caught[0] if caught else None


def _list_passes(whole: Traced) -> Iterator[Callable[[], object]]:
    """Calls of the whole, the likeliest first."""
    model: Any = whole.model
    args, kwargs = whole.inputs.fresh(model)
    yield partial(model, *args, **kwargs)
    home = pretrained.find_home(whole)
    for name, draw in (("get_image_features", _draw_images), ("get_audio_features", _draw_sounds)):
        ask = getattr(model, name, None) or getattr(getattr(model, "base_model", None), name, None)
        if ask is None:
            continue
        names = set(inspect.signature(ask).parameters)
        for inputs in draw(model, names, home):
            yield partial(ask, **devices.move({key: inputs[key] for key in inputs.keys() & names}, model))


def _draw_images(model: PreTrainedModel, names: set[str], home: Path | None) -> Iterator[dict[str, Tensor]]:
    """An image as the image processor in `home` gives it, else in the layouts that classes take."""
    draw = torch.Generator().manual_seed(0)
    vision = getattr(model.config, "vision_config", None) or model.config
    if home is not None and any(home.glob("*processor_config.json")):
        from transformers import AutoImageProcessor

        with suppress(Exception):  # there is none, or it needs a library
            image = torch.randint(0, 256, (3, 224, 224), dtype=torch.uint8, generator=draw)
            found = AutoImageProcessor.from_pretrained(home)(image, return_tensors="pt")
            yield {
                key: one.to(model.dtype) if one.is_floating_point() else one
                for key, one in found.items()
                if isinstance(one, Tensor)
            }
    plain = pretrained.draw_input(model, "pixel_values", draw)
    sizes = torch.tensor([plain.shape[-2:]] * len(plain))
    for pixels in (plain, plain[:, None]):
        yield {"pixel_values": pixels, "image_sizes": sizes}
    patch = getattr(vision, "patch_size", None)
    if isinstance(patch, int):  # patches of all images in a row, and how many each has
        frames, side = getattr(vision, "temporal_patch_size", 1), 2 * getattr(vision, "spatial_merge_size", 2)
        rows = torch.randn(side * side, plain.shape[1] * frames * patch**2, generator=draw).to(model.dtype)
        yield {"pixel_values": rows, "image_grid_thw": torch.tensor([[1, side, side]])}


def _draw_sounds(model: PreTrainedModel, names: set[str], home: Path | None) -> Iterator[dict[str, Tensor]]:
    """Frames or samples of a sound."""
    draw = torch.Generator().manual_seed(0)
    for name in ("input_features", "input_values"):
        if name in names:
            yield {name: pretrained.draw_input(model, name, draw)}
