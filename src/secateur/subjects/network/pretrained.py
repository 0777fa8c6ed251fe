"""Models of transformers that are opened by their folder or Hub id and cut as networks of any kind.

What reads images or sound is a network to every command; what reads texts is one to `secateur prune` alone. A result
whose config describes it is a plain folder, as the original's was, with what reads its inputs beside it.
"""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from secateur._utils import checkpoints, plugins
from secateur._utils.disk import atomic_write
from secateur.errors import InputError, ModelError, SecateurError, UnsupportedError
from secateur.subjects.network.shrinking import history
from secateur.subjects.network.traced import Traced

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "closes_recipes",
    "copy_beside",
    "describe_stored",
    "describes",
    "draw_input",
    "explain_lack",
    "find_gguf",
    "find_home",
    "has_experts",
    "is_model",
    "is_pretrained",
    "is_rebuilt",
    "is_taken",
    "make_inputs",
    "open_pretrained",
    "reads_texts",
    "save",
    "takes_tokens",
]

_TOKENIZERS = (
    "tokenizer*.json", "tokenizer*.model", "vocab*.json", "vocab*.txt", "merges*.txt", "*.model", "*.spm",
    "special_tokens_map.json", "added_tokens.json", "normalizer.json", "generation_config.json",
)  # fmt: skip
_BESIDE = (
    "*processor_config.json", "feature_extractor*.json", "chat_template*", "*.jinja",
    "LICEN[SC]E*", "NOTICE*", "COPYING*", "USE_POLICY*",
)  # fmt: skip
_MODELS = ("*.gguf", "*.safetensors", "config.json")
"""Files of which a folder has one where a model lies in it."""
_TOKENS = 12
_IDS, _DRAWN = "input_ids", ("pixel_values", "input_values", "input_features")
"""Names of inputs in transformers: ids of tokens, and images, samples of sound and frames."""
_BINS = ("num_mel_bins", "feature_size", "input_feat_per_channel", "feature_projection_input_dim")
"""What configs call the numbers in a frame of sound."""
_NAMED = re.compile(r"token_(id|index)$")


def is_pretrained(source: object) -> bool:
    """Whether it names a folder with a config of transformers, a GGUF file that is there, or a Hub id.

    That is owner/name, or a name alone, as old models such as gpt2 have it.
    """
    if not isinstance(source, str | Path) or not str(source) or plugins.names_function(source):
        return False
    place = Path(source)
    beside = place.exists() if place.name == str(source) else place.parent.exists()
    hub = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(source)) and not beside
    return (Path(source) / "config.json").is_file() or find_gguf(source) is not None or bool(hub)


def is_model(source: object) -> bool:
    """Whether it is a model of transformers itself."""
    return any(kind.__module__ == "transformers.modeling_utils" for kind in type(source).__mro__)


def find_gguf(source: str | Path) -> Path | None:
    """The GGUF file that it names: the file itself, or the only one in a folder that holds no other model."""
    place = Path(source).expanduser()
    if place.is_dir():
        there = [path for pattern in _MODELS for path in place.glob(pattern)]
        place = there[0] if len(there) == 1 else place
    return place if place.suffix == ".gguf" and place.is_file() else None


def reads_texts(source: str | Path) -> bool:
    """Whether the class that a folder's config names takes token ids; of what is not there, or names none, yes.

    Of one whose tensors have sizes of their own (`transformer.reshaped`), no: it is a network to every command.
    """
    file = Path(source) / "config.json"
    if not file.is_file():
        return True
    from secateur.subjects.transformer import saving  # which load transformers

    said = checkpoints.read_json(file)
    if isinstance(said, Mapping) and saving.is_reshaped(said):
        return False
    named = said.get("architectures") if isinstance(said, Mapping) else None
    known = [saving.original_class(str(name)) for name in named or []]
    return next((kind.main_input_name == "input_ids" for kind in known if kind is not None), True)


def find_home(subject: Traced) -> Path | None:
    """The folder of transformers that a network was opened from, or first cut from; None of another, or one gone."""
    from secateur.subjects.transformer import loading  # which loads transformers

    original = history(subject.model).built_by
    with suppress(ModelError):
        return loading.locate(original) if is_pretrained(original) else None
    return None


def has_experts(source: object) -> bool:
    """Whether the config of a folder, a Hub id or a model, or of a part of it, says several experts.

    As transformers reads it, with the defaults of its class, else as it is written; of what is not there, no.
    """
    from secateur.subjects.transformer import loading  # which loads transformers

    config = getattr(source, "config", None)
    said: object = None
    if is_pretrained(source):
        file = Path(cast("str | Path", source), "config.json")
        said = checkpoints.read_json(file) if file.is_file() else None
        with suppress(ModelError):  # whoever opens it is told
            config = loading.read_config(cast("str | Path", source))
    said = getattr(config, "to_dict", lambda: said)()
    settings = [said, *said.values()] if isinstance(said, Mapping) else []
    return any(
        isinstance(value, int) and value > 1 and name.endswith("experts")
        for part in settings
        if isinstance(part, Mapping)
        for name, value in part.items()
    )


def open_pretrained(source: str | Path) -> PreTrainedModel:
    """The model at `source`, of any class that transformers has.

    Raises as `subjects.open_subject` does, and `UnsupportedError` for a folder of sentence-transformers, whose other
    modules would be lost, and for one with branches.
    """
    from secateur.subjects.transformer import loading, low_rank  # which load transformers

    if find_gguf(source) is not None:
        return loading.read_any(source)
    home = loading.locate(source)
    low_rank.refuse_branches(source, home)
    if any((place / "modules.json").is_file() for place in (home, Path(source))):
        raise UnsupportedError(
            f"{source} is of sentence-transformers, whose pooling and other modules a cut as a network would lose: "
            "use a recipe that keeps them, such as `secateur run magnitude` or `secateur run ziplm` (secateur list)"
        )
    return loading.read_any(source)


def describe_stored(source: object) -> str:
    """What sizes of a model are that was opened from quantised or packed weights; "" where they were floats."""
    if not is_pretrained(source):
        return ""
    from secateur.subjects.transformer import loading  # which loads transformers

    size = 0.0
    with suppress(ModelError):  # a name that another kind of subject has of its own
        size = loading.count_stored(cast("str | Path", source))
    if not size:
        return ""
    return (
        f"{source} takes {size / 1e6:.3g} MB as it is stored, quantised or packed: sizes before the cut, and budgets "
        "of bytes, are those of the floating point that it was opened as; export the result again to have it small"
    )


def takes_tokens(model: nn.Module) -> bool:
    """Whether a model of transformers takes ids of tokens first."""
    return getattr(model, "main_input_name", "") == _IDS


def make_inputs(model: PreTrainedModel, shape: Sequence[int] = ()) -> dict[str, Tensor | bool]:
    """Short inputs of the model's own kind, drawn with a generator of their own: tokens, pixels, samples or frames.

    Those of its main input alone where it runs on them, else of all that its class takes, as of text and image.
    shape: of the tokens, [B, T], of a model that takes these. Raises `InputError` for one of other than two dimensions.
    """
    if shape and len(shape) != 2:
        raise InputError(f"{type(model).__name__} takes tokens [B, T], and not inputs of {list(shape)}: say 2x12")
    draw, config = torch.Generator().manual_seed(0), model.config
    batch, length = shape or (2, _TOKENS)
    tokens = _draw_tokens(config, (batch, length), draw)
    main = model.main_input_name
    rest: dict[str, Tensor | bool] = {}
    if config.is_encoder_decoder:
        rest["decoder_input_ids"] = tokens[:, : max(1, length // 2)]
    if getattr(config, "use_cache", False):
        rest["use_cache"] = False
    first = draw_input(model, main, draw) if main in _DRAWN else tokens
    if main in _DRAWN[1:]:
        others = (one for one in _draw_layouts(model, draw) if _runs(model, {main: one} | rest))
        first = first if _runs(model, {main: first} | rest) else next(others, first)
    inputs: dict[str, Tensor | bool] = {main: first}
    known = [name for name in inspect.signature(model.forward).parameters if name in (_IDS, *_DRAWN) and name != main]
    if known and not _runs(model, inputs | rest):
        inputs |= {name: tokens if name == _IDS else draw_input(model, name, draw) for name in known}
    inputs |= rest
    if "decoder_input_ids" in inputs and not _runs(model, inputs):  # some classify by the state of the last token
        end = int(config.eos_token_id or 0)
        ended = torch.cat([tokens[:, :-1].where(tokens[:, :-1] != end, 3 + (end == 3)), tokens[:, -1:] * 0 + end], 1)
        alone = {name: value for name, value in inputs.items() if name != "decoder_input_ids"} | {_IDS: ended}
        inputs = alone if main == _IDS and _runs(model, alone) else inputs
    if "use_cache" not in inputs and getattr(config.get_text_config(), "use_cache", False):
        without = inputs | {"use_cache": False}  # a model of several, whose language model would return its cache
        inputs = without if _runs(model, without) else inputs
    return inputs


def _draw_tokens(config: PretrainedConfig, shape: tuple[int, int], draw: torch.Generator) -> Tensor:
    """Ids of tokens, none of which stands for an image or a sound, or ends a text."""
    parts = (config, config.get_text_config())
    named = (value for part in parts for name, value in part.to_dict().items() if _NAMED.search(name))
    special = {value for value in named if isinstance(value, int)}
    end = min(int(getattr(parts[1], "vocab_size", 0) or 64), 30000)
    tokens = torch.randint(3, end, shape, generator=draw)
    plain = next((token for token in range(3, end) if token not in special), 3)
    return tokens.where(~torch.isin(tokens, torch.tensor(sorted(special), dtype=tokens.dtype)), plain)


def draw_input(model: PreTrainedModel, name: str, draw: torch.Generator, batch: int = 2) -> Tensor:
    """Pixels [B, C, H, W], samples [B, T] or frames [B, mel bins, T], in the precision of the model."""
    config = model.config
    if name == "pixel_values":
        part = getattr(config, "vision_config", None) or config
        size = getattr(part, "image_size", None) or 224
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        drawn = torch.randn(batch, getattr(part, "num_channels", 3), *sides, generator=draw)
    elif name == "input_values":
        drawn = torch.randn(batch, 16000, generator=draw)
    else:
        bins = getattr(config, "num_mel_bins", None) or getattr(config, "feature_size", None) or 80
        frames = 2 * (getattr(config, "max_source_positions", None) or 100)
        drawn = torch.randn(batch, bins, frames, generator=draw)
    return drawn.to(model.dtype)


def _draw_layouts(model: PreTrainedModel, draw: torch.Generator) -> Iterator[Tensor]:
    """Sounds in other layouts: frames [B, T, bins] and [B, 1, T, bins], and samples [B, 1, T]."""
    whole = model.config.to_dict()
    said = [whole, *(part for part in whole.values() if isinstance(part, Mapping))]
    bins = [settings[name] for settings in said for name in _BINS if isinstance(settings.get(name), int)]
    for count in dict.fromkeys(bins):
        for length in (getattr(model.config, "max_length", None) or 200, 200):
            frames = torch.randn(2, length, count, generator=draw).to(model.dtype)
            yield from (frames, frames[:, None])
    yield torch.randn(2, 1, 16000, generator=draw).to(model.dtype)


def _runs(model: PreTrainedModel, inputs: Mapping[str, Tensor | bool]) -> bool:
    place = model.device
    try:
        with torch.no_grad():
            model(**{key: one.to(place) if isinstance(one, Tensor) else one for key, one in inputs.items()})
    except Exception:  # whatever a class says against it
        return False
    return True


def describes(model: nn.Module) -> bool:
    """Whether a model's class builds tensors of its shapes from its config, so that `from_pretrained` loads it."""
    if not hasattr(model, "save_pretrained") or not hasattr(model, "config"):
        return False
    config = cast("PreTrainedModel", model).config
    try:
        with torch.device("meta"):
            built = type(model)(type(config).from_dict(config.to_dict()))
    except Exception:  # whatever a class says against it
        return False
    shapes, own = ({name: one.shape for name, one in each.state_dict().items()} for each in (built, model))
    return shapes == own


def is_rebuilt(subject: Traced, original: str) -> bool:
    """Whether `save` writes, with a modelling file, what no config describes by itself."""
    from secateur.subjects.transformer import reshaped, traced_cuts  # which load transformers

    return traced_cuts.rebuild(subject, original) is not None or reshaped.build(subject) is not None


def save(subject: Traced, folder: Path, original: str) -> bool:
    """Write a model that its config describes, and beside it what the folder at `original` has beside its weights.

    And where its class fits a table of the transformers, the map of what was cut, by which adapters are translated; a
    result whose layers, or single tensors, have sizes of their own has its modelling file beside it (again). Of what
    can't be told so, only what lies beside the weights is written: returns whether the model is there.
    """
    from secateur.subjects.transformer import loading, reshaped, saving, traced_cuts  # which load transformers

    folder.mkdir(parents=True, exist_ok=True)
    model = cast("PreTrainedModel", subject.model)
    found = traced_cuts.describe_cut(subject, original)  # before the files that it speaks of are overwritten
    if not describes(model) or saving.is_reshaped(model.config):
        rebuilt = traced_cuts.rebuild(subject, original)
        own = reshaped.build(subject) if rebuilt is None else None
        if rebuilt is not None:
            rebuilt.save(folder)
        elif own is not None:
            reshaped.save(own, folder)
        else:
            loading.copy_files(original, folder)
            return False
    else:
        if saving.needs_module(model.config):
            saving.write_module(saving.mark_config(model.config), loading.open_outline(original).family, folder)
        model.save_pretrained(folder)
    loading.copy_files(original, folder)
    if found is not None:
        atomic_write(folder / saving.MAP, found)
    return True


def explain_lack(subject: Traced, original: str) -> str:
    """Why `save` writes a folder without the map of what was cut from `original`; "" where there is one."""
    if not is_pretrained(original):
        return ""  # no folder of transformers
    from secateur.subjects.transformer import traced_cuts  # which loads transformers

    if traced_cuts.has_map(subject, original) or not (describes(subject.model) or is_rebuilt(subject, original)):
        return ""
    if not is_taken(original):
        return "maps are made of models that recipes on language models take as a whole, and the original is none"
    return "it was cut in no whole units before, or a tensor of its class has a size of its own"


def is_taken(original: str) -> bool:
    """Whether recipes on language models take the model at `original` as a whole."""
    from secateur.subjects.transformer import loading  # which loads transformers

    try:
        loading.open_outline(original)
    except SecateurError:
        return False
    return True


def closes_recipes(subject: Traced, original: str) -> bool:
    """Whether recipes on language models take the model at `original`, and no more what was cut from it."""
    from secateur.subjects.transformer import reshaped, traced_cuts  # which load transformers

    if traced_cuts.rebuild(subject, original) is not None or reshaped.build(subject) is None:
        return False
    return is_taken(original)


def copy_beside(home: Path, folder: Path, *, tokenizer: bool = True) -> None:
    """Copy to `folder`, unless they are there, files of `home` that travel with the weights; no record of the original.

    What reads inputs and writes answers, and the licence. tokenizer: with the files of one, and how it writes.
    """
    for pattern in (*_BESIDE, *(_TOKENIZERS if tokenizer else ())):
        for path in home.glob(pattern):
            if path.is_file() and not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)
