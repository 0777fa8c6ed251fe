"""Open a checkpoint as a subject, and reload a result; every bad checkpoint is refused here, by name."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from secateur._utils import checkpoints, devices
from secateur._utils.finite import all_finite
from secateur._utils.modes import default_dtype, move_to_device
from secateur._utils.tokenizers import Tokenizer
from secateur.errors import InputError, MissingExtraError, ModelError, UnsupportedError
from secateur.formats import unpacking
from secateur.subjects.network.pretrained import copy_beside, find_gguf
from secateur.subjects.transformer import dequantising, files, low_rank, packing, reshaped, saving
from secateur.subjects.transformer.deriving import find_family
from secateur.subjects.transformer.families import Family, find
from secateur.subjects.transformer.making import make_subject
from secateur.subjects.transformer.misfits import describe_misfit, describe_zeros
from secateur.subjects.transformer.origin import Origin, hash_model
from secateur.subjects.transformer.small_copy import reads_texts
from secateur.subjects.transformer.streamed import Streamed
from secateur.subjects.transformer.subject import Stored, Transformer

__all__ = [
    "Folders",
    "check_outline",
    "copy_files",
    "count_bytes",
    "count_stored",
    "hash_gguf",
    "load",
    "locate",
    "make_empty",
    "open_outline",
    "open_streamed",
    "open_subject",
    "outline_any",
    "read_any",
    "read_config",
    "read_tokenizer",
]

_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_FETCHED = [
    "*.safetensors",
    "*.json",
    "*.txt",
    "*.model",
    "*.spm",
    "*.codes",
    "*.tiktoken",
    "*.jinja",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "COPYING*",
    "USE_POLICY*",
    "README.md",
]
_LEFT = ["onnx/*", "openvino/*", "original/*", "consolidated*"]
"""Other forms of the same weights, such as those of gpt-oss in `original`."""
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")


def open_subject(
    source: str | Path | PreTrainedModel,
    *,
    tokenizer: Tokenizer | None = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype | str | None = None,
    quantised: bool = False,
    device_map: str | None = None,
) -> Transformer:
    """The model at `source` as something to prune.

    source: a folder (plain, sentence-transformers, or an earlier result), a Hub id, a GGUF file, or a model in memory
    (which is not copied; cuts copy). dtype: of the weights; as stored if None. Raises `ModelError` for a checkpoint
    that is missing, damaged, pickled, or holds NaN or infinity, `UnsupportedError` for an architecture secateur doesn't
    know and for a task whose model does not give one tensor of logits (question answering, pre-training, multiple
    choice).

    Weights that are stored as integers or in eight bits become floating point as they are read, as a warning says, for
    only those can be cut; what is saved then says nothing of integers any more. quantised: the model is to be measured
    as it is stored, by its bytes and bits.

    device_map: how Accelerate is to split what is read from a folder over devices, such as "auto".
    """
    if isinstance(source, PreTrainedModel):
        family = find_family(saving.plain_class(type(source)), source.config)
        _check_finite(source)
        return make_subject(source, family, tokenizer)
    if str(source).endswith(".gguf") and Path(source).expanduser().is_file():
        if device_map is not None:
            raise InputError(f"{source} is a file, which is read whole, and folders are split: name one device")
        return _open_gguf(Path(source).expanduser(), tokenizer, dtype, quantised)
    folder = _local(source)
    root, modules = _layout(folder)
    _check_folder(root, trust_remote_code)
    model, family = _read(root, trust_remote_code, dtype, "dense" if quantised else "floats", device_map)
    head = [_module(entry, folder) for entry in modules]
    _check_finite(model, *head)
    subject = make_subject(model, family, tokenizer or read_tokenizer(root), folder, head)
    subject.origin = Origin.find(model, subject.layout, root, str(source))
    method = checkpoints.read_json(root / "config.json").get("quantization_config")
    if method is not None and quantised:
        stored = sum(path.stat().st_size for path in root.glob("*.safetensors"))
        subject.stored = Stored(_bits(method), float(stored))
    low_rank.restore(subject.model, root / low_rank.FOLDER)
    return subject


def _open_gguf(
    file: Path, tokenizer: Tokenizer | None, dtype: torch.dtype | str | None, quantised: bool
) -> Transformer:
    """The model in a GGUF file. Its folder is what lies beside it, licence and card too, if no other model does.

    And the tokenizer, where the file has none.
    """
    model, own, bits = dequantising.read_gguf(file, dtype, quantised=quantised)
    if own is None and tokenizer is None and _lies_alone(file):
        own = read_tokenizer(file.parent)
    subject = open_subject(model, tokenizer=tokenizer or own)
    if bits is not None and quantised:
        subject.stored = Stored(bits, float(file.stat().st_size))
    if _lies_alone(file):
        subject.folder = file.parent
    return subject


def hash_gguf(file: Path) -> str | None:
    """`hash_model` of what a GGUF file opens as: that of a folder of the same floats, where it holds floats."""
    return hash_model(dequantising.read_gguf(file, quantised=True)[0])


def count_stored(source: str | Path) -> float:
    """Bytes of the weights at `source`, and of its branches, where they are quantised or packed; 0 for floating point.

    By the files that hold them.
    """
    file = find_gguf(source)
    if file is not None:
        return 0.0 if dequantising.has_floats(file) else float(file.stat().st_size)
    root = locate(source)
    packed = {"quantization_config", unpacking.KEY} & checkpoints.read_json(root / "config.json").keys()
    return count_bytes(root) if packed else 0.0


def count_bytes(folder: Path) -> float:
    """Bytes of the files that hold the weights of the model in `folder`, and its branches."""
    places = (folder, folder / low_rank.FOLDER)
    return float(sum(path.stat().st_size for place in places for path in place.glob("*.safetensors")))


def _lies_alone(file: Path) -> bool:
    """Whether no other model lies beside it."""
    return find_gguf(file.parent) == file


def copy_files(source: str | Path, folder: Path) -> None:
    """Copy to `folder`, unless they are there, files that travel with the weights of the model at `source`.

    The tokenizer of a GGUF file is written, and what lies beside the file copied if no other model does.
    """
    file = find_gguf(source)
    if file is None:
        copy_beside(locate(source), folder)
        return
    tokenizer = dequantising.read_gguf_tokenizer(file)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if _lies_alone(file):
        copy_beside(file.parent, folder)


class Folders(Mapping[str, Transformer]):
    """Models by name, each read from its folder when it is asked for, to where `like` is, with its tokenizer."""

    def __init__(self, folders: Mapping[str, Path], like: Transformer) -> None:
        self._folders, self._like = folders, like

    def __getitem__(self, name: str) -> Transformer:
        subject = open_subject(self._folders[name], tokenizer=self._like.tokenizer)
        move_to_device(subject.model, str(devices.find_device(self._like.model)))
        return subject

    def __iter__(self) -> Iterator[str]:
        return iter(self._folders)

    def __len__(self) -> int:
        return len(self._folders)


def open_streamed(source: str | Path, *, tokenizer: Tokenizer | None = None) -> Streamed:
    """The causal language model at `source`, a folder or a Hub id, left on the disk: blocks are read one at a time.

    Raises as `open_subject` does, and `UnsupportedError` for encoders, models with layers of their own widths, and
    models with weights in eight bits or fewer.
    """
    folder = _local(source)
    root, modules = _layout(folder)
    _check_folder(root, trust_remote_code=False)
    config, family, named = _config(root, trust_remote_code=False)
    dequantising.refuse(root, config)
    if packing.is_packed(config.to_dict()):
        raise UnsupportedError(
            f"{source} holds packed weights, which can't be streamed: open it whole and save it again"
        )
    model = saving.architecture(named, config, family)
    if family.kind != "decoder" or modules or not model.can_generate():
        raise UnsupportedError(f"{source} is no causal language model: only those can be streamed from the disk")
    if saving.needs_module(config):
        raise UnsupportedError(f"{source} has layers of their own widths, which can't be streamed yet: open it whole")
    if low_rank.has_branches(root / low_rank.FOLDER):
        raise UnsupportedError(f"{source} has branches in {low_rank.FOLDER}/, which can't be streamed: open it whole")
    subject = Streamed(root, model, config, family, tokenizer or read_tokenizer(root))
    subject.origin = Origin.find(subject.model, subject.layout, root, str(source))
    return subject


def check_outline(source: str | Path) -> None:
    """Find the family of the model that the configuration at `source` describes: to derive one needs values.

    Raises `UnsupportedError` for a model that reads no texts, or was cut as a network, and as `open_outline` does.
    """
    if find_gguf(source) is None:
        low_rank.refuse_branches(source, Path(source))
    config, named = _outline_layers(source)
    if not reads_texts(named):
        raise UnsupportedError(f"{named.__name__} reads {named.main_input_name}: estimate plans models of texts alone")
    find_family(named, config)


def open_outline(source: str | Path) -> Transformer:
    """The subject that the configuration at `source` describes, with weights that were never filled.

    A folder that holds a config.json, with or without weights, the file itself, a GGUF file, or a Hub id. Within
    `measure.memory.simulate` it takes no memory. Raises `ModelError` as `open_subject` does, and `UnsupportedError` for
    a model that was cut as a network, in no whole units.
    """
    config, named = _outline_layers(source)
    family = find_family(named, config)
    return make_subject(make_empty(saving.architecture(named, config, family), config), family)


def make_empty(kind: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """A model of that class with weights that were never filled, in the number type of its config."""
    with no_init_weights(), default_dtype(getattr(config, "dtype", None) or torch.float32):
        model = kind(config)
        model.tie_weights()
    return model.eval()


def outline_any(source: str | Path) -> PreTrainedModel:
    """The model that the configuration at `source` describes, of any class that transformers has, on device meta."""
    config, named = _outline(source)
    with torch.device("meta"):
        return make_empty(reshaped.choose_class(named, config), config)


def _outline_layers(source: str | Path) -> tuple[PretrainedConfig, type[PreTrainedModel]]:
    """`_outline` of a model whose config says the sizes of its layers."""
    config, named = _outline(source)
    if saving.is_reshaped(config):
        raise UnsupportedError(
            f"{source} was cut as a network and in no whole units: its layers can't be planned by a config, so take "
            "`secateur measure`, or estimate the model as it was before"
        )
    return config, named


def _outline(source: str | Path) -> tuple[PretrainedConfig, type[PreTrainedModel]]:
    """The configuration at `source` as it is once its weights are floats, and transformers' class for it."""
    if (file := find_gguf(source)) is not None:
        return dequantising.read_gguf_outline(file)
    folder = _find_config(source)
    config, named = _read_config(folder, trust_remote_code=False)
    if packing.is_packed(config.to_dict()):
        config = unpacking.plain(config)
    elif dequantising.ask_for_floats(folder, config):
        del config.quantization_config
    return config, named


def read_config(source: str | Path) -> PretrainedConfig:
    """The configuration at `source`, with the defaults of its class: of a folder, a config.json, a GGUF, or a Hub id.

    Of the last, what lies in the cache where the Hub can't be reached. Raises `ModelError` for none.
    """
    if (file := find_gguf(source)) is not None:
        return dequantising.read_gguf_config(file)
    return _open_config(_find_config(source), trust_remote_code=False)


def _find_config(source: str | Path) -> Path:
    """The folder of a config.json."""
    folder = Path(source).parent if Path(source).name == "config.json" else _local(source, fetched=["*.json"])
    if not (folder / "config.json").is_file():
        raise ModelError(f"{source} has no config.json: give the folder or the file of a model's configuration")
    return folder


def locate(source: str | Path) -> Path:
    """The folder in which the transformer at `source` stands, a folder or a Hub id. Raises `ModelError` for none."""
    root, _ = _layout(_local(source))
    _check_folder(root, trust_remote_code=_is_reshaped(root))
    return root


def _is_reshaped(root: Path) -> bool:
    """Whether a modelling file of ours lies there, of a network in no whole units, which is not run but done again."""
    file = root / "config.json"
    said = checkpoints.read_json(file) if file.is_file() else None
    return isinstance(said, Mapping) and saving.is_reshaped(said)


def load(path: str | Path) -> PreTrainedModel:
    """A saved model, plain or heterogeneous, without running code from its folder."""
    root = locate(path)
    if _is_reshaped(root):
        return read_any(root)
    model = _read(root, False, None, "as stored")[0]
    low_rank.restore(model, root / low_rank.FOLDER)
    return model


def read_any(source: str | Path) -> PreTrainedModel:
    """The model at `source`, a folder, a GGUF file or a Hub id, of any class of transformers: no family is looked for.

    Quantised and packed weights become floats, as `open_subject` has it. Raises `ModelError` as that does.
    """
    if (file := find_gguf(source)) is not None:
        model = dequantising.read_gguf(file)[0]
        _check_finite(model)
        return model
    root = locate(source)
    said = checkpoints.read_json(root / "config.json")
    if {"per_layer_config", "secateur", unpacking.KEY} & said.keys() and not saving.is_reshaped(said):
        model = _read(root, False, None, "floats")[0]
        low_rank.restore(model, root / low_rank.FOLDER)
        return model
    config = _open_config(root, trust_remote_code=False)
    _ready(root, config, dense=True)
    undone = dequantising.ask_for_floats(root, config)
    known = (saving.original_class(name) for name in config.architectures or [])
    kind = next((one for one in known if one), None)
    if kind is None:
        _refuse_part(root, config)
        kind = AutoModel
    else:
        kind = reshaped.choose_class(kind, config)
    try:
        model, report = kind.from_pretrained(
            root, config=config, use_safetensors=True, use_kernels=False, output_loading_info=True
        )
    except Exception as error:
        raise ModelError(f"the weights of {root} can't be loaded as {kind.__name__} ({_line(error)})") from error
    if report["missing_keys"]:
        lacking = report["missing_keys"]
        raise ModelError(f"the weights of {root} lack {min(lacking)} ({len(lacking)} are missing): fetch them again")
    if undone:
        dequantising.finish(model, root, undone)
    _check_finite(model)
    return model.eval()


def read_tokenizer(root: Path) -> Tokenizer | None:
    """The tokenizer that lies beside the weights; None where there is none."""
    if not any((root / name).is_file() for name in _TOKENIZERS):
        return None
    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(root)
    except Exception as error:
        raise ModelError(f"the tokenizer of {root} can't be read ({_line(error)})") from error
    return tokenizer


def _has_type(model_type: str) -> bool:
    return find(model_type) is not None or model_type in CONFIG_MAPPING


def _check_type(model_type: str, place: str) -> None:
    if not _has_type(model_type):
        raise UnsupportedError(
            f"{place} is of the architecture {model_type!r}, which transformers {transformers.__version__} doesn't "
            "have, so it can't be opened: install a newer version, or give a model of another architecture"
        )


def _local(source: str | Path, fetched: Sequence[str] = _FETCHED) -> Path:
    """The folder at `source`, which a Hub id is fetched into, its files `fetched`; never its pickles or code."""
    folder, name = Path(source).expanduser(), str(source).strip()
    if folder.is_dir() and name:
        return folder
    if folder.is_file():
        raise ModelError(f"{source} is a file: give the folder that holds config.json and model.safetensors")
    looks_local = not name or name.startswith((".", "/", "~", "\\")) or name.count("/") > 1
    if looks_local or (folder.parent != Path(".") and folder.parent.exists()):
        raise ModelError(
            f"no model at {str(source)!r}: expected a folder with config.json and model.safetensors, or a Hub id"
        )
    try:
        return Path(snapshot_download(name, allow_patterns=list(fetched), ignore_patterns=_LEFT))
    except Exception as error:
        raise ModelError(f"{name!r} is no folder here, and the Hub gave no model ({_line(error)})") from error


def _layout(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Where the transformer stands, and the sentence-transformers modules after it."""
    if not (folder / "modules.json").is_file():
        return folder, []
    modules = checkpoints.read_json(folder / "modules.json")
    if not (isinstance(modules, list) and modules and all(isinstance(entry, dict) for entry in modules)):
        raise ModelError(f"{folder / 'modules.json'} is damaged: it lists no modules")
    return folder / (modules[0].get("path") or ""), modules[1:]


def _check_folder(folder: Path, trust_remote_code: bool) -> None:
    low_rank.refuse_adapter(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is no model folder: it has no config.json")
    data = checkpoints.read_json(folder / "config.json")
    if not isinstance(data, dict) or "model_type" not in data:
        raise ModelError(f"{folder / 'config.json'} is damaged: it names no model_type")
    own = (
        "per_layer_config" in data or saving.is_sliced(data) or saving.has_stacks(data) or packing.is_packed(data)
    )  # code of ours, which is not run but done again here
    if "auto_map" in data and not own and not _has_type(data["model_type"]):
        raise UnsupportedError(
            f"{folder} is of the architecture {data['model_type']!r}, for which it brings code of its own: model code "
            "of others is not supported, trusted or not; give a model of an architecture that transformers has"
        )
    if "auto_map" in data and not own and not trust_remote_code:
        raise ModelError(
            f"{folder} carries modelling code of its own, which is not run unasked: "
            "pass trust_remote_code=True if you trust it"
        )
    _check_type(data["model_type"], str(folder))
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = [path.name for pattern in _PICKLES for path in folder.glob(pattern)]
        if pickles:
            raise ModelError(
                f"{folder} has its weights only as a pickle ({pickles[0]}), which is never opened: "
                "save the model again as safetensors"
            )
        raise ModelError(f"{folder} has no weights: expected model.safetensors (pickles are never opened)")
    for path in weights:
        _check_safetensors(path)
    files.find_tensors(folder)  # transformers follows an index out of the folder


def _check_safetensors(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as opened:
            opened.keys()
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged or truncated ({_line(error)}): fetch it again") from error


def _config(place: Path, trust_remote_code: bool) -> tuple[PretrainedConfig, Family, type[PreTrainedModel]]:
    """The configuration at `place`, its family, and transformers' class for it."""
    config, named = _read_config(place, trust_remote_code)
    return config, find_family(named, config), named


def _open_config(place: Path, trust_remote_code: bool) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(f"{place / 'config.json'} can't be used ({_line(error)})") from error
    return config


def _read_config(place: Path, trust_remote_code: bool) -> tuple[PretrainedConfig, type[PreTrainedModel]]:
    """The configuration at `place`, and transformers' class for it."""
    config = _open_config(place, trust_remote_code)
    known = (saving.original_class(name) for name in config.architectures or [])
    named = next((kind for kind in known if kind), None)
    if named is None:
        _refuse_part(place, config)
        written, causal = find(config.model_type), AutoModelForCausalLM._model_mapping
        encoder = written.kind == "encoder" if written else type(config) not in causal
        named = (AutoModel._model_mapping if encoder else causal)[type(config)]
    return config, named


def _refuse_part(place: Path, config: PretrainedConfig) -> None:
    """Refuse a part that was saved by itself, such as an encoder of sounds: transformers would load the whole model."""
    try:
        module = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    except ImportError:
        return
    part = next((name for name in config.architectures or [] if hasattr(module, name)), None)
    if part is not None:
        raise UnsupportedError(
            f"{place} holds a {part}, a part that no automatic class of transformers loads by itself: give the folder "
            f"of the whole model, or in Python the module to secateur.prune"
        )


def _read(
    place: Path,
    trust_remote_code: bool,
    dtype: torch.dtype | str | None,
    quantised: Literal["floats", "dense", "as stored"],
    device_map: str | None = None,
) -> tuple[PreTrainedModel, Family]:
    """The model; quantised weights become floats, are kept as they are stored, or dense where a library packs them."""
    config, family, named = _config(place, trust_remote_code)
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    options |= {} if device_map is None else {"device_map": device_map}
    _ready(place, config, dense=quantised != "as stored")
    undone = dequantising.ask_for_floats(place, config) if quantised == "floats" else ""
    source: Path | None = place
    try:
        if packing.is_packed(config.to_dict()):
            config, source = unpacking.plain(config), None
            options["state_dict"] = dict(unpacking.tensors(place))
        kind = saving.architecture(named, config, family)
        with saving.quiet_progress(sum(path.stat().st_size for path in place.glob("*.safetensors"))):
            model, report = kind.from_pretrained(
                source, config=config, use_safetensors=True, use_kernels=False, output_loading_info=True, **options
            )
    except Exception as error:
        raise ModelError(f"the weights of {place} can't be loaded as {named.__name__} ({_line(error)})") from error
    if undone:
        dequantising.finish(model, place, undone)
    if source is None and model.can_generate() and (place / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(place)
    missing = set(report["missing_keys"])
    unpooled = {name for name in missing if name.startswith("pooler.")}  # of a base model, whose states don't need it
    if unpooled:
        model.pooler = None
        missing -= unpooled
    if missing:
        raise ModelError(
            f"the weights of {place} lack {min(missing)} ({len(missing)} tensors are missing): fetch them again"
        )
    return model.eval(), family


def _ready(place: Path, config: PretrainedConfig, *, dense: bool) -> None:
    """Whether the library of quantised weights is there; if `dense`, packed ones will be unpacked at once."""
    method = getattr(config, "quantization_config", None)
    if method is None:
        return
    for name in ("torchao", "compressed-tensors"):
        if dequantising.name_method(method) == name and importlib.util.find_spec(name.replace("-", "_")) is None:
            raise MissingExtraError(f"the weights of {place} need {name}: pip install 'secateur[quantise]'")
    if dense and dequantising.name_method(method) == "compressed-tensors":
        config.quantization_config = {**method, "dequantize": True}


def _bits(said: object) -> int:
    """Bits of each weight by what a config.json says of its quantisation; 8 where it does not say."""
    found = re.search(r"int(\d)_?weight|\"num_bits\": (\d)|\"int(\d)\"", json.dumps(said).lower())
    return int(next(filter(None, found.groups()))) if found else 8


def _check_finite(*modules: nn.Module) -> None:
    for name, parameter in (pair for module in modules for pair in module.named_parameters()):
        if type(parameter).__module__.startswith("torchao"):
            continue  # integers
        if parameter.is_meta:
            continue  # offloaded: its values come when it runs
        if parameter.is_floating_point() and not all_finite(parameter):
            raise ModelError(f"{name} holds NaN or infinity: this checkpoint is broken, use an intact one")


def _module(entry: dict[str, Any], folder: Path) -> nn.Module:
    """A sentence-transformers module after the transformer."""
    kind = entry["type"]
    if not kind.startswith("sentence_transformers."):
        raise ModelError(f"modules.json names {kind}, which is code outside sentence-transformers and is not run")
    try:
        importlib.import_module("sentence_transformers")
    except ImportError as error:
        raise MissingExtraError("this is a sentence-transformers folder: pip install 'secateur[embed]'") from error
    from sentence_transformers.util import import_from_string

    try:
        module: nn.Module = import_from_string(kind).load(str(folder), subfolder=entry["path"])
    except Exception as error:
        raise ModelError(f"the module {kind} of {folder} can't be loaded ({_line(error)})") from error
    return module.eval()


def _line(error: BaseException) -> str:
    """An outside error on one line; in words of ours where its own name nothing."""
    if isinstance(error, LocalEntryNotFoundError):  # whose own words are many
        return "it is not in the cache of the Hub, which can't be asked: offline, or HF_HUB_OFFLINE is set"
    text = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    if "ignore_mismatched_sizes" in text[0]:
        tried = [frame.f_locals.get("model") for frame, _ in traceback.walk_tb(error.__traceback__)]
        known = (describe_misfit(model) for model in tried if isinstance(model, PreTrainedModel))
        return next(filter(None, known), "config.json gives other sizes than the weights have: correct it")
    if isinstance(error, ZeroDivisionError):
        places = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
        held = (place.get(name) for place in places for name in ("config", "self"))
        zeros = (describe_zeros(config) for config in held if isinstance(config, PretrainedConfig))
        return next(filter(None, zeros), text[0])
    where = [frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, KeyError) and where[-1:] == ["transformers.activations"]:
        return f"transformers has no activation {error}: correct it in config.json"
    return " ".join(text[: 2 if text[0].endswith(":") else 1])[:200]
