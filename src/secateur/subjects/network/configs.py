"""Configs of models from transformers and diffusers, brought up to date where they can describe a cut.

Nothing here knows a model. A config describes a network if what its class builds from it has the network's modules,
shapes and numbers; built on the meta device, that costs no memory.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.overrides import TorchFunctionMode

from secateur.subjects.network.operators import Arguments, Keywords

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Change", "Hollow", "behind", "config_changes", "holders", "list_own", "read", "write"]

Change = tuple[str, str, int]
"""(module that holds the config, field, new value); "text_config.hidden_size" and "widths.0" are fields, too."""

Own = dict[str, Any]
"""What a model has otherwise than its class builds, see `list_own`."""

_LAYERS = "per_layer_config"
"""Where configs of transformers say what single layers have otherwise."""
_BUILDS = 8
"""How many configs are tried at most: each takes as long as the modules of a network take to be made."""
_FILLS = frozenset(name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")) | frozenset(
    ["zero_", "fill_", "copy_", "mul_", "add_", "clamp_", "erfinv_", "exponential_"]
)
"""What gives a tensor its first values, in place."""


def holders(model: nn.Module) -> dict[str, nn.Module]:
    """The outermost modules that write a config of their own beside their weights: path -> module."""
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        inside = any(not one or path.startswith(f"{one}.") for one in found)
        if not inside and callable(getattr(module, "save_pretrained", None)) and hasattr(module, "config"):
            found[path] = module
    return found


def write(model: nn.Module, changes: Sequence[Change]) -> None:
    """Put new values into the configs of `model`, also where a part of it holds a copy."""
    modules = dict(model.named_modules())
    for path in dict.fromkeys(one[0] for one in changes):
        values = {field: new for place, field, new in changes if place == path}
        holder: Any = modules[path]
        if callable(getattr(holder, "register_to_config", None)):
            holder.register_to_config(**_replace_values(dict(holder.config), values))
            continue
        old = {field: read(holder.config, field) for field in values}
        seen: dict[int, Any] = {}
        for part in holder.modules():
            config = getattr(part, "config", None)
            if type(config) is type(holder.config):
                seen[id(config)] = config
        for config in seen.values():
            for field, new in values.items():
                if read(config, field) == old[field]:
                    _set(config, field, new)


def config_changes(
    model: nn.Module, small: nn.Module, widths: Mapping[int, Counter[int]], fits: Callable[[str, bool], bool]
) -> tuple[list[Change], list[Change], list[str]]:
    """What the configs of `model` must say to describe `small`, which was cut from it.

    Also numbers of modules of `small` (module, attribute, value) that the config's class sets otherwise, which is right
    if nothing reads them; and the paths of the modules of which no config describes what is left.
    widths: old size -> how often it became which. fits: whether a field of this name may speak of a width, or surely
    does.
    """
    changes: list[Change] = []
    numbers: list[Change] = []
    lost = []
    parts = dict(small.named_modules())
    for path, holder in holders(model).items():
        if _shapes(holder) == _shapes(parts[path]):
            continue
        search = _Search(holder, parts[path], widths)
        # A config of a make of its own, which nobody knows to read.
        known = hasattr(holder, "register_to_config") or hasattr(holder.config, "to_dict")
        found = search.run(fits) if known else None
        if found is None:
            lost.append(path)
            continue
        changes += [(path, field, new) for field, new in found.items()]
        start = f"{path}." if path else ""
        numbers += [((start + one).rstrip("."), name, new) for one, name, new in search.left]
    return changes, numbers, lost


def behind(model: nn.Module, paths: Iterable[str] | None = None) -> list[str]:
    """Notes on the models at `paths` whose configs stay behind what was cut; on all that `model` holds if None."""
    found = holders(model)
    notes = []
    for path in found if paths is None else paths:
        name = f"{path} ({type(found[path]).__name__})" if path else type(found[path]).__name__
        notes.append(
            f"config: no config of {name} describes what is left (widths differ between layers, or its class computes "
            "one from another), so the config is still the original's: what save_pretrained writes, from_pretrained "
            "won't load. Folders that commands wrote, and save() of secateur.subjects.open_traced's subject, keep it, "
            "and secateur.load opens them"
        )
    return notes


def list_own(model: PreTrainedModel, kind: type[PreTrainedModel]) -> Own | None:
    """What `model` has otherwise than its class, `kind`, builds from the model's config; None where modules differ.

    "shapes" of parameters and buffers by name; "numbers" of modules as (module, attribute, value); "buffers" that no
    file would hold, and whose values are others.
    """
    own = ("secateur", "auto_map")
    data = {name: value for name, value in model.config.to_dict().items() if name not in own}
    state = torch.random.get_rng_state()
    try:
        with Hollow():
            built = kind(type(model.config).from_dict(data))
    finally:
        torch.random.set_rng_state(state)
    shapes, theirs = _shapes_by_name(model), _shapes_by_name(built)
    numbers, set_by = _numbers(model), _numbers(built)
    inner = ({key: one for key, one in each.items() if key[0] and not key[1]} for each in (numbers, set_by))
    if next(inner) != next(inner) or not theirs.keys() <= shapes.keys():
        return None
    buffers, made = dict(model.named_buffers()), dict(built.named_buffers())
    return {
        "shapes": {name: list(shape) for name, shape in shapes.items() if theirs.get(name) != shape},
        "numbers": [(*key, one) for key, one in numbers.items() if key[1] and key in set_by and set_by[key] != one],
        "buffers": [
            name
            for path, module in model.named_modules()
            for leaf in module._non_persistent_buffers_set
            if (name := f"{path}.{leaf}".removeprefix(".")) in buffers and not _same(buffers[name], made.get(name))
        ],
    }


def _shapes_by_name(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """`_shapes`, a tensor that stands in several modules under each of its names."""
    return _shapes(model) | {name: tuple(one.shape) for name, one in model.named_parameters(remove_duplicate=False)}


def _same(one: Tensor, other: Tensor | None) -> bool:
    if other is None or other.is_meta or one.shape != other.shape:
        return False
    return torch.equal(one.cpu(), other.to(one.dtype))


class _Search:
    """For the config that builds `small`, which was cut from `holder`."""

    def __init__(self, holder: Any, small: nn.Module, widths: Mapping[int, Counter[int]]) -> None:
        self.holder, self.small, self.widths = holder, small, widths
        self.shapes, self.numbers, self.before = _shapes(small), _numbers(small), _numbers(holder)
        self.whole = {path for path, one in small.named_modules() if any(True for _ in one.children())}
        self.buffers = {
            f"{path}.{name}" if path else name: one
            for path, module in small.named_modules()
            for name in module._non_persistent_buffers_set
            if (one := module._buffers[name]) is not None
        }
        """Those that no file holds."""
        self.builds = 0
        self.left: list[Change] = []
        """Numbers of modules that the cut set otherwise than the best config, and what that sets."""
        self.built: nn.Module | None = None
        """What the best config builds."""

    def run(self, fits: Callable[[str, bool], bool]) -> dict[str, int] | None:
        """Field -> new value: the likeliest value of each field first, then others for one after another.

        A field that says v may now say what v became anywhere.
        """
        data = _data(self.holder)
        values = {field: old for field, old in _fields(data) if fits(_name(field), False)}
        options = {
            field: self._became(field, old)
            for field, old in values.items()
            if set(self.widths.get(old, {old})) != {old}
        }
        if not options or (not any("." in field for field in options) and self._uneven()):
            return None
        heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
        if "num_attention_heads" in options and heads and hidden and not data.get("head_dim"):
            # Many a class reads this field where it is there, and takes the ratio where it is not.
            options["head_dim"] = [hidden // heads]
        best = {field: new[0] for field, new in options.items()}
        least, self.left, self.built = self._differences(best)
        better = True
        while least and better:
            better = False
            for field, several in options.items():
                for new in several:
                    if new != best[field] and least and self.builds < _BUILDS:
                        count, left, built = self._differences({**best, field: new})
                        if count < least:
                            best, least, better = {**best, field: new}, count, True
                            self.left, self.built = left, built
        for field, old in values.items():
            # A number that was a width by chance only.
            if not least and best.get(field, old) != old and not fits(_name(field), True):
                count, left, built = self._differences({**best, field: old})
                if not count:
                    best, self.left, self.built = {**best, field: old}, left, built
        found = {field: new for field, new in best.items() if new != values.get(field)}
        return found if not least and self._same_buffers() and not self._leaves_out() else None

    def _became(self, field: str, old: int) -> list[int]:
        """What a width may be, the likeliest first: of an entry of a list what it is in the layer of its number."""
        ranked = [new for new, _ in self.widths[old].most_common() if new != old] + [old]
        place = field.rpartition(".")[2]
        if not place.isdecimal():
            return ranked
        before = _shapes(self.holder)
        own = Counter(
            new
            for name, shape in self.shapes.items()
            if place in name.split(".")
            for was, new in zip(before.get(name, ()), shape, strict=False)
            if was == old
        )
        return sorted(ranked, key=lambda new: -own[new])

    def _differences(self, values: Mapping[str, int]) -> tuple[float, list[Change], nn.Module | None]:
        """How many shapes and numbers of what a config builds are not those of the cut network; `left`; `built`."""
        self.builds += 1
        with nullcontext() if self.buffers else torch.device("meta"), Hollow():
            built = _built(self.holder, values)
        if built is None:
            return math.inf, [], None
        shapes, numbers = _shapes(built), _numbers(built)
        left: list[Change] = []
        wrong = len(shapes.items() ^ self.shapes.items())
        for key in numbers.keys() | self.numbers.keys():
            old, new, was = self.numbers.get(key), numbers.get(key), self.before.get(key)
            if old == new:
                continue
            # Left as it was, or changed beside a width that was as large: whichever, nothing may read it.
            became: Container[object] = self.widths.get(was, ()) if type(was) is int else ()
            unread = (old == was and new in became) or (new == was and old in became)
            if unread and key[0] in self.whole and type(new) is int:
                left.append((*key, new))
            else:
                wrong += 1
        return float(wrong), sorted(left), built

    def _uneven(self) -> bool:
        """Whether layers of one make have widths of their own now, which single numbers can't say."""
        before = _shapes(self.holder)
        seen: dict[tuple[str, Any], Any] = {}
        for name, shape in self.shapes.items():
            make = ".".join("*" if part.isdigit() else part for part in name.split(".")), before.get(name)
            if seen.setdefault(make, shape) != shape:
                return True
        return False

    def _same_buffers(self) -> bool:
        """Whether buffers that no file holds come out of the best config as they are in the cut network."""
        made = dict(self.built.named_buffers()) if self.built is not None else {}
        return all(
            name in made and (made[name].is_meta or torch.equal(made[name].to(one.dtype), one.cpu()))
            for name, one in self.buffers.items()
        )

    def _leaves_out(self) -> bool:
        """Whether a tensor that was cut is one that its class doesn't write, as Marian's sinusoids: it makes others."""
        before, unwritten = _shapes(self.holder), getattr(self.holder, "_keys_to_ignore_on_save", None) or ()
        return any(before.get(name) != self.shapes.get(name) for name in unwritten)


def _data(holder: Any) -> dict[str, object]:
    plain: Any = holder.config if hasattr(holder, "register_to_config") else holder.config.to_dict()
    return dict(plain)


def _built(holder: Any, values: Mapping[str, int]) -> nn.Module | None:
    """What the class builds from its config with these values, read as from a file; None where it refuses."""
    kind: Any = type(holder)
    state = torch.random.get_rng_state()
    try:
        data = _replace_values(_data(holder), values)
        if hasattr(holder, "register_to_config"):
            built = kind.from_config(data)
        else:
            built = kind(type(holder.config).from_dict(data))
    except Exception:  # a class refuses numbers that don't go together by whatever it likes
        return None
    finally:
        torch.random.set_rng_state(state)
    return built if isinstance(built, nn.Module) else None


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(one.shape) for name, one in (*model.named_parameters(), *model.named_buffers())}


def _numbers(model: nn.Module) -> dict[tuple[str, str], object]:
    """(module, attribute) -> value of all plain numbers, and the classes."""
    found: dict[tuple[str, str], object] = {}
    for path, module in model.named_modules():
        found[path, ""] = type_before_parametrizations(module)  # torch makes a class of its own for each of the others
        for name, one in vars(module).items():
            if name.startswith("_") or name == "training":
                continue
            if type(one) in (int, float, bool):
                found[path, name] = one
            elif isinstance(one, list | tuple) and all(type(part) in (int, float) for part in one):
                found[path, name] = tuple(one)
    return found


class Hollow(TorchFunctionMode):
    """Weights without memory, for which no values are drawn; buffers with their values."""

    def __torch_function__(
        self, func: Callable[..., object], types: Sequence[type], args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        if getattr(func, "__name__", "") in _FILLS:
            filled = args[0] if args else kwargs.get("tensor")
            if isinstance(filled, Tensor) and filled.is_meta:
                return filled
        return func(*args, **kwargs)


# ------------------------------------------------------------------------------------------------------- fields


def _name(field: str) -> str:
    """Without what it stands in, and its place in a list."""
    return next((part for part in reversed(field.split(".")) if not part.isdigit()), field)


def _fields(data: Any, path: str = "") -> Iterator[tuple[str, int]]:
    items = data.items() if isinstance(data, Mapping) else enumerate(data)
    for key, value in items:
        name = f"{path}.{key}" if path else str(key)
        if type(value) is int:
            yield name, value
        elif isinstance(value, Mapping | list | tuple):
            yield from _fields(value, name)


def _replace_values(data: dict[str, Any], values: Mapping[str, int]) -> dict[str, object]:
    """A copy of plain `data` with new values."""
    data = copy.deepcopy(data)
    for field, value in values.items():
        _set(data, field, value)
    return data


def read(holder: object, field: str) -> object:
    """What a config, or plain data, says in a field; None where it does not have it."""
    for part in field.split("."):
        if isinstance(holder, list | tuple):
            holder = holder[int(part)]
        else:
            if part == _LAYERS and not isinstance(holder, Mapping):
                holder = _as_data(holder)
            holder = holder.get(_key(holder, part)) if isinstance(holder, Mapping) else getattr(holder, part, None)
    return holder


def _as_data(config: object) -> object:
    """A config as plain data, in which a layer has what it says otherwise, and not a config of its own."""
    made = getattr(config, "to_dict", None)
    return made() if callable(made) else {}


def _key(holder: Container[object], part: str) -> str | int:
    """The key of a part of a field: layers are counted by numbers in memory, and by texts in JSON."""
    return int(part) if part.isdecimal() and part not in holder else part


def _set(holder: object, field: str, new: object) -> None:
    first, _, rest = field.partition(".")
    if rest:
        inner = read(holder, first)
        if first == _LAYERS and not isinstance(holder, dict):
            _set(inner, rest, new)
            return setattr(holder, first, inner)
        if not isinstance(inner, list | tuple):
            return _set(inner, rest, new)
        number, _, deeper = rest.partition(".")
        parts = list(inner)
        if deeper:
            _set(parts[int(number)], deeper, new)
        else:
            parts[int(number)] = new
        new = type(inner)(parts)
    if isinstance(holder, dict):
        holder[_key(holder, first)] = new
    else:
        setattr(holder, first, new)
