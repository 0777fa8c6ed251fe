"""Every model class of transformers' auto-mappings: is it derived, is it cut, and is the result an ordinary model?

Each class is built with a tiny configuration and random weights and saved. A process with secateur opens the folder,
which derives the family, takes 25 % of the heads and neurons of each layer out by magnitude (of the layers, where
neither can go), and saves the result. A process in which secateur can't be imported loads that with transformers'
auto class, compares the logits, and generates eight tokens with the cache. Of those that read texts alone, half of the
single weights go, too, by Wanda, for which every matrix of every block has to have read something. No class is known by
name. Writes docs/evidence/families.md and docs/evidence/benchmarks/families.json; with names or kinds it does so with
--write, and the rows of other classes stay.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import os
import queue
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from support.processes import Tell, describe, run_apart

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "evidence"
ROWS = OUT / "benchmarks" / "families.json"
LIMIT = 60
"""Seconds that deriving, cutting and saving a class may take; loading the result, too."""
SHARE, NEW = 0.75, 8
"""Of each site stays; tokens that are generated."""
LAYERS = (4, 8)
"""Of a tiny model; more where fewer don't run: some have their first attention late."""
CLOSE = 1e-4
"""Largest difference of logits, as a share of the largest of them: attention kernels differ between processes."""
TRIES = 10
"""Tiny configurations of a class that are built at most."""
LARGE = 80_000_000
"""Parameters of a tiny model at most."""

KINDS = {
    "decoder": {"MODEL_FOR_CAUSAL_LM_MAPPING": "AutoModelForCausalLM"},
    "encoder": {"MODEL_FOR_MASKED_LM_MAPPING": "AutoModelForMaskedLM"},
    "seq2seq": {"MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING": "AutoModelForSeq2SeqLM"},
    "image-text": {"MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING": "AutoModelForImageTextToText"},
    "audio": {
        "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING": "AutoModelForSpeechSeq2Seq",
        "MODEL_FOR_CTC_MAPPING": "AutoModelForCTC",
        "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING": "AutoModelForAudioClassification",
    },
}
"""Kind -> transformers' mappings and the auto class of each. A class in several mappings is of the last kind."""
GOALS = {"decoder": 0.90, "encoder": 0.85, "seq2seq": 0.75, "image-text": 0.75, "audio": 0.75}

CUT = ("heads", "neurons", "expert_neurons", "shared_neurons")
READERS = ("decoder", "encoder", "seq2seq")
"""Kinds of which single weights go, too: what they read is texts alone."""
HALF, LEAST = 0.5, 0.4
"""Of the single weights in matrices goes, and of all that layers hold: routers, convolutions and tables stay."""
WORDS = 40
"""Of the tokenizer of tiny models, which have 61 tokens or more."""


# ------------------------------------------------------------------------------------------------- tiny models


def list_classes() -> list[dict[str, str]]:
    """Kind, mapping, configuration and class of everything that the mappings name and this machine can import."""
    from transformers.models.auto import modeling_auto

    found: dict[tuple[str, str], dict[str, str]] = {}
    for kind, mappings in KINDS.items():
        for mapping in mappings:
            for config, models in getattr(modeling_auto, mapping).items():
                model = models[0] if isinstance(models, list | tuple) else models
                if model.config_class in getattr(config, "sub_configs", {}).values():
                    config = model.config_class  # as the auto class has it
                key = (model.__name__, config.__name__)
                found[key] = {"kind": kind, "mapping": mapping, "config": config.__name__, "model": model.__name__}
    return sorted(found.values(), key=lambda row: (list(KINDS).index(row["kind"]), row["model"].lower()))


_EACH = re.compile(r"experts?_per_tok|top_?k$|(^|_)k$")
_WIDE = re.compile(r"size|dim|width|inner|rank|ffn|d_model|d_ff|n_embd|d_inner")
_FIXED = re.compile(r"vocab|image|patch|num_|n_")


def shrink(data: Mapping[str, Any], kind: Any, factor: int, depth: int, *, heads: bool) -> dict[str, Any]:
    """A configuration as a dictionary, with its parts: few layers, tokens and experts, and sizes divided by `factor`.

    heads: divide the numbers of heads, too, whose own sizes stay; otherwise their sizes are divided.
    """
    native = {common: name for common, name in kind.attribute_map.items() if isinstance(name, str)}
    layers = {native.get("num_hidden_layers", "num_hidden_layers"), "num_layers", "n_layer", "depth"}
    whole = next((data[name] for name in layers if isinstance(data.get(name), int)), 0)
    parts, small = getattr(kind, "sub_configs", {}), dict(data)
    for name, value in data.items():
        if isinstance(value, dict) and name in parts:
            part = find_part(parts[name], value)
            small[name] = shrink(value, part, factor, depth, heads=heads) if part else value
        elif isinstance(value, list) and whole and len(value) == whole > depth:
            small[name] = value[:depth]
        elif isinstance(value, bool) or not isinstance(value, int):
            continue
        elif name.endswith("_token_id"):
            small[name] = min(value, len(name) % 3)
        elif name in layers or re.fullmatch(r"(num_)?(en|de)coder_layers", name):
            small[name] = depth
        elif name == "vocab_size":
            small[name] = min(value, 61)
        elif "group" in name and not _WIDE.search(name):
            small[name] = min(value, 1 if "top" in name else 2)
        elif _EACH.search(name):
            small[name] = min(value, 2)
        elif "expert" in name and not _WIDE.search(name):
            small[name] = min(value, 2 if "shared" in name else 4)
        elif re.search(r"heads$|n_head$", name):
            small[name] = max(1, value // factor) if heads else value
        elif "head" in name and heads:
            continue
        elif value >= 64 and _WIDE.search(name) and not _FIXED.match(name):
            small[name] = max(8, value // factor)
    return small


def fill(data: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as a dictionary with numbers of experts and heads, where a class has none of its own."""
    more = dict(data)
    heads, layers = data.get("num_attention_heads"), data.get("num_hidden_layers")
    for name, value in data.items():
        if value is not None:
            continue
        if _EACH.search(name):
            more[name] = 2
        elif re.search(r"experts$", name):
            more[name] = 1 if "shared" in name else 4
        elif re.search(r"n_group$|topk_group$", name):
            more[name] = 1
        elif name == "num_key_value_heads" and heads:
            more[name] = heads
        elif name == "head_dim" and heads:
            more[name] = data["hidden_size"] // heads
        elif name == "layer_types" and layers:
            more[name] = ["full_attention"] * layers
    return more


def find_part(part: Any, value: Mapping[str, Any]) -> Any:
    """The configuration class of a part, which a class may leave to the part's own `model_type`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    said = value.get("model_type")
    return CONFIG_MAPPING[said] if said in CONFIG_MAPPING else part if hasattr(part, "attribute_map") else None


def tiny_configs(kind: Any, decoder: bool) -> Iterator[Any]:
    """Tiny configurations of a class: as the library shrinks one, then with sizes divided, the smallest first.

    Raises what stood in the way of the first of those that a class refuses, where it refuses all.
    """
    from secateur.subjects.transformer.small_copy import shrink_config

    default = kind()
    if decoder and hasattr(default, "is_decoder"):
        default.is_decoder = True
    data = default.to_dict()
    bases = [data] if fill(data) == data else [data, fill(data)]
    ways: list[Any] = [lambda base, depth=depth: shrink_config(kind.from_dict(base), range(depth)) for depth in LAYERS]
    ways += [
        lambda base, how=how: kind.from_dict(shrink(base, kind, *how[:2], heads=how[2]))
        for how in ((factor, depth, heads) for depth in LAYERS for factor in (32, 16, 8, 4) for heads in (False, True))
    ]
    refused: list[Exception] = []
    for way in ways:
        for base in bases:
            try:
                config = way(base)
            except Exception as error:  # whatever stands in the way there
                refused.append(error)
                continue
            yield config
    if len(refused) == len(ways) * len(bases):
        raise refused[1]


def make_inputs(model: Any) -> dict[str, Any]:
    """Two short inputs of the model's own kind: tokens, samples or frames."""
    import torch

    tokens = torch.randint(3, 40, (2, 12))
    name = model.main_input_name
    if name in ("input_ids", "inputs") or hasattr(model, "get_image_features"):
        inputs = {"input_ids" if name != "inputs" else name: tokens}
    elif name == "input_values":
        inputs = {name: torch.randn(2, 4000)}
    else:
        bins = getattr(model.config, "num_mel_bins", None) or getattr(model.config, "feature_size", None) or 80
        frames = 2 * (getattr(model.config, "max_source_positions", None) or 100)
        inputs = {name: torch.randn(2, bins, frames)}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = tokens[:, :7]
    return inputs


def build(row: Mapping[str, str]) -> tuple[Any, dict[str, Any]]:
    """The tiny model of a class with random weights, and its inputs. Raises what the first try raised."""
    import torch

    kind, model = find_class(row["config"]), find_class(row["model"])
    first: Exception | None = None
    for config in itertools.islice(tiny_configs(kind, row["kind"] == "decoder"), TRIES):
        try:
            with torch.device("meta"):
                size = sum(parameter.numel() for parameter in model(copy.deepcopy(config)).parameters())
            if size > LARGE:
                raise ValueError(f"its tiny configuration has {size:,} parameters")
            torch.manual_seed(0)
            tiny = model(config).float().eval()
            with torch.no_grad():  # norms of one and biases of zero hide what they do
                for parameter in tiny.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
            inputs = make_inputs(tiny)
            logits_of(tiny, inputs)
        except Exception as error:
            first = first or error
            continue
        return tiny, inputs
    assert first is not None
    raise first


def find_class(name: str) -> Any:
    """A class of transformers' by its name, also one that its front page leaves out."""
    import transformers
    from transformers.models.auto import modeling_auto

    if hasattr(transformers, name):
        return getattr(transformers, name)
    for mappings in KINDS.values():
        for mapping in mappings:
            for config, models in getattr(modeling_auto, mapping).items():
                models = models if isinstance(models, list | tuple) else (models,)
                for one in (config, *models, *(model.config_class for model in models)):
                    if one.__name__ == name:
                        return one
    raise ValueError(f"transformers has no {name}")


def logits_of(model: Any, inputs: Mapping[str, Any]) -> Any:
    """What a model gives for its inputs, in double precision. Raises ValueError where that is no number."""
    import torch

    with torch.no_grad():
        output = model(**inputs)
    logits = (output["logits"] if "logits" in output else output[0]).double()
    if not torch.isfinite(logits).all():
        raise ValueError("its logits are no numbers")
    return logits


def generate(model: Any, inputs: Mapping[str, Any], *, cache: bool = True) -> Any:
    """`NEW` tokens [B, NEW] more, the likeliest ones."""
    import torch

    given = {name: value for name, value in inputs.items() if name != "decoder_input_ids"}
    with torch.no_grad():
        found = model.generate(
            **given, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, num_beams=1, use_cache=cache
        )
    return found[:, -NEW:]


# ------------------------------------------------------------------------------------------------- with secateur


def make(row: Mapping[str, str], folder: Path, tell: Tell) -> dict[str, Any]:
    """Build the class, open it from its folder, cut it, and leave result and expectations in `folder`."""
    import torch
    from safetensors.torch import save_file

    from secateur.errors import SecateurError

    torch.set_num_threads(1)
    tiny, inputs = build(row)
    tiny.save_pretrained(folder / "original")
    generates = False
    if tiny.can_generate() and row["kind"] != "encoder":
        try:
            before = generate(tiny, inputs)
            generates = True
        except Exception:  # transformers' own class can't: there is nothing to compare
            before = None
    tell({"params": sum(parameter.numel() for parameter in tiny.parameters()), "generates": generates})
    start = time.process_time()
    try:
        small, found = cut(folder / "original", tell)
        tell({"seconds": time.process_time() - start, **found})
        if not found["cut"]:
            return {"status": "nothing cut", "why": "; ".join(small.layout.whole.values())}
        small.save(folder / "small")
    except SecateurError as error:
        return {"status": "refused", "why": describe(error), "seconds": time.process_time() - start}
    except Exception as error:
        return {"status": "crashed", "why": describe(error), "seconds": time.process_time() - start}
    expected = {f"input.{name}": value for name, value in inputs.items()}
    try:
        model = small.model if small.whole is None else small.whole.assemble(small)
        expected["logits"] = logits_of(model, inputs)
        if generates:
            expected["tokens"] = generate(model, inputs)
            if torch.equal(before, generate(tiny, inputs, cache=False)):
                expected["uncached"] = generate(model, inputs, cache=False)
    except Exception as error:
        return {"status": "does not run after the cut", "why": describe(error)}
    save_file({name: value.contiguous().clone() for name, value in expected.items()}, folder / "expected.safetensors")
    if row["kind"] in READERS:
        tell(thin(folder / "original"))
    return {"status": "cut"}


def cut(folder: Path, tell: Tell) -> tuple[Any, dict[str, Any]]:
    """What is left of the model, or of its part that reads texts where it is one of several, and what of it went."""
    import secateur
    from secateur.errors import UnsupportedError
    from secateur.score import magnitude
    from secateur.select import ranking
    from secateur.subjects.transformer.parts import open_part
    from secateur.vocabulary import Selection

    part = "text_config" if "text_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")) else ""
    subject: Any = None
    if not part:
        try:
            subject = secateur.open_subject(folder)
        except UnsupportedError as error:  # its own advice is followed, as of an encoder and decoder of two classes
            advice = re.search(r"cut a part of it, --part (\w+)", str(error))
            if advice is None:
                raise
            part = advice[1]
    subject = subject or open_part(folder, part)
    units = subject.units(multiple=4)
    sites = {site.name: site for site in units.free() if site.kind in CUT}
    counts = defaultdict[str, list[int]](list)
    for site in units.sites.values():
        if site.kind in CUT or site.kind == "kv_groups":
            counts[site.kind].append(site.count)
    whole = {kind: why for kind, why in subject.layout.whole.items() if kind in counts}
    tell({"units": dict(counts), "whole": whole})
    scores = magnitude.groups(subject.model, subject.consumers())
    for layer, mixture in subject.mixtures().items() if hasattr(subject, "mixtures") else ():
        rows = mixture.experts.down_proj.detach().transpose(1, 2).flatten(0, 1)  # [E, d, width] -> [E width, d]
        scores[f"layers.{layer}.expert_neurons"] = magnitude.norm(rows, dim=0)
    keep = ranking.by_shares(units, scores, dict.fromkeys(sites, SHARE))
    if not sites:
        keep = choose_layers(subject, units)
    try:
        small, receipt = subject.cut(Selection(keep))
    except UnsupportedError:
        if not part or "layers" in keep:
            raise
        # Three heads of four: a part's config class may want their number to divide its channels.
        keep = {name: stays for name, stays in keep.items() if sites[name].kind != "heads"} or choose_layers(
            subject, units
        )
        small, receipt = subject.cut(Selection(keep))
    gone = Counter[str]()
    for name, (count, _) in receipt.removed.items():
        gone[units[name].kind] += count
    return small, {"cut": {kind: gone[kind] for kind in (*CUT, "layers") if gone[kind]}}


def thin(folder: Path) -> dict[str, Any]:
    """How many of the single weights stay where half of them are to go by Wanda, or why they can't, as `thinned`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    import secateur
    from secateur.data import texts
    from secateur.errors import SecateurError

    sys.path.append(str(ROOT))
    from claims._lab.calling import prune

    base = Tokenizer(models.WordLevel({f"w{number}": number for number in range(WORDS)}, unk_token="w0"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=base, unk_token="w0", pad_token="w1", eos_token="w2")
    tokenizer.save_pretrained(folder)
    sentences = [
        " ".join(f"w{3 + (first * 7 + step * step) % (WORDS - 3)}" for step in range(24)) for first in range(32)
    ]
    try:
        subject = secateur.open_subject(folder)
        result = prune("wanda", subject, texts.read(sentences), f"weights={HALF:.0%}", samples=32, length=16)
    except SecateurError as error:
        return {"thinned": describe(error)}
    except Exception as error:
        return {"thinned": f"crashed: {describe(error)}"}
    zeros = total = 0
    for path in subject.layers():  # counted here, whatever the receipt says
        for parameter in result.subject.model.get_submodule(path).parameters():
            if parameter.dim() > 1:
                zeros, total = zeros + int((parameter == 0).sum()), total + parameter.numel()
    return {"thinned": zeros / total}


def choose_layers(subject: Any, units: Any) -> dict[str, Any]:
    """Of a model without heads and neurons that could go: its layers, without the quarter of the smallest weights."""
    import numpy as np

    site = units["layers"]
    if site.frozen:
        return {}
    sizes = np.array(
        [
            sum(
                float(parameter.detach().square().sum()) for parameter in subject.model.get_submodule(path).parameters()
            )
            for path in subject.layers()
        ]
    )
    sizes[np.zeros(site.count, dtype=bool) if site.fixed is None else site.fixed] = np.inf
    keep = np.ones(site.count, dtype=bool)
    keep[np.argsort(sizes)[: round((1 - SHARE) * site.count)]] = False
    return {"layers": keep}


# ------------------------------------------------------------------------------------------------- without secateur


def read(row: Mapping[str, str], folder: Path, tell: Tell) -> dict[str, Any]:
    """Load the result with transformers alone, and compare logits and generation."""
    import torch
    import transformers
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    try:
        import secateur  # noqa: F401
    except ImportError:
        pass
    else:
        raise RuntimeError("secateur is here")
    expected = load_file(folder / "expected.safetensors")
    inputs = {name.removeprefix("input."): value for name, value in expected.items() if name.startswith("input.")}
    auto: Any = getattr(transformers, KINDS[row["kind"]][row["mapping"]])
    travels = any((folder / "small").glob("*.py"))
    if not travels and find_class(row["config"]) not in auto._model_mapping:
        auto = find_class(row["model"])  # the mapping has the configuration of which this one is a part
    try:
        model = auto.from_pretrained(folder / "small", trust_remote_code=travels).eval()
        logits = logits_of(model, inputs)
    except Exception as error:
        return {"status": "does not load", "why": describe(error)}
    difference = float((logits - expected["logits"]).abs().max() / expected["logits"].abs().max())
    row = {"difference": difference, "code": travels}
    if not math.isfinite(difference) or difference > CLOSE:
        return row | {"status": "other logits", "why": f"logits differ by {difference:.1e} once the result is loaded"}
    if "tokens" in expected:
        try:
            tokens = generate(model, inputs)
        except Exception as error:
            return row | {"status": "does not generate", "why": describe(error)}
        if not torch.equal(tokens, expected["tokens"]):
            return row | {"status": "other tokens", "why": "other tokens are generated once the result is loaded"}
        if not torch.equal(tokens, expected.get("uncached", tokens)):
            return row | {"status": "other tokens", "why": "other tokens are generated with the cache than without"}
    return row | {"status": "done"}


# ------------------------------------------------------------------------------------------------- processes


class Guard:
    """An import hook: secateur can't be imported, though it is installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "secateur":
            raise ModuleNotFoundError("secateur is not here", name="secateur")


def serve(role: str) -> None:
    """Answer one line of JSON for each on standard input; each in a process forked for it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if role == "read":
        sys.meta_path.insert(0, Guard())  # type: ignore[arg-type]
    import torch  # noqa: F401
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    from transformers import AutoModelForCausalLM, GenerationMixin, modeling_utils  # noqa: F401

    if role == "make":
        import secateur.score.magnitude
        import secateur.select.ranking
        import secateur.subjects.opening
        import secateur.subjects.transformer.deriving  # noqa: F401
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["task"] == "list":
            answer: Any = run_apart(lambda _: {"classes": list_classes()}, 10 * LIMIT)
        else:
            work = {"make": make, "read": read}[role]
            answer = run_apart(
                lambda tell, asked=asked, work=work: work(asked["row"], Path(asked["folder"]), tell),
                asked["limit"],
                show=asked["show"],
            )
        print(json.dumps(answer), file=answers, flush=True)


class Server:
    """A process that serves one role."""

    def __init__(self, role: str, cache: Path, *, show: bool = False) -> None:
        paths = [str(ROOT / "src")] if role == "make" else []
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "SECATEUR_CACHE": str(cache / "secateur"),
            "HF_MODULES_CACHE": str(cache / "modules"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if show else subprocess.DEVNULL,
            env=environment,
            text=True,
        )

    def ask(self, task: str, **more: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"task": task, **more}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def try_class(maker: Server, reader: Server, row: dict[str, str], folder: Path, options: Any) -> dict[str, Any]:
    """The row of one class."""
    folder.mkdir()
    more = {"row": row, "folder": str(folder), "limit": options.limit, "show": options.show}
    result = row | maker.ask("make", **more)
    if result["status"] == "cut":
        result |= reader.ask("read", **more)
    if not options.keep:
        shutil.rmtree(folder)
    return result


def collect(
    classes: Sequence[dict[str, str]], folder: Path, options: Any, keep: Callable[[dict[str, Any]], None]
) -> None:
    """A row for each class, `options.jobs` at a time, given to `keep` as soon as it is there."""
    tasks: queue.Queue[tuple[int, dict[str, str]]] = queue.Queue()
    for task in enumerate(classes):
        tasks.put(task)
    lock = threading.Lock()

    def work() -> None:
        maker, reader = (Server(role, folder / "cache", show=options.show) for role in ("make", "read"))
        while True:
            try:
                number, row = tasks.get_nowait()
            except queue.Empty:
                break
            result = try_class(maker, reader, row, folder / str(number), options)
            with lock:
                keep(result)
            took = f"{result['seconds']:.1f} s" if "seconds" in result else ""
            print(result["kind"], result["model"], result["status"], took, result.get("why", ""), flush=True)
        maker.close()
        reader.close()

    threads = [threading.Thread(target=work) for _ in range(options.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ------------------------------------------------------------------------------------------------- the page


def is_built(row: Mapping[str, Any]) -> bool:
    return "params" in row


def is_thinned(row: Mapping[str, Any]) -> bool:
    """Whether half of the single weights went, as zeros in the tensors say."""
    share = row.get("thinned")
    return isinstance(share, float) and share >= LEAST


def describe_thinned(row: Mapping[str, Any]) -> str:
    """Why it is not half of the single weights that went."""
    share = row.get("thinned", "not tried")
    return f"{share:.0%} are zeros" if isinstance(share, float) else share.replace("|", "/")


def reason(row: Mapping[str, Any]) -> str:
    """Why a class failed, without names of classes and numbers, so that equal reasons are equal."""
    text = row.get("why", "").replace("|", "/")
    text = text.removeprefix("UnsupportedError: ").removeprefix("ModelError: ")
    text = text.replace(row["model"], "CLASS").replace(row["config"], "CONFIG")
    text = re.sub(r"\S*/(original|small)\S*", "FOLDER", text)
    text = re.sub(r"one of its parts \([^)]*\)", "one of its parts", re.sub(r"[0-9]+", "N", text))
    return f"{row['status']}: {text[:150].strip()}"


def describe_units(row: Mapping[str, Any]) -> str:
    """Sites and units of each kind: layers x units, those that stay whole in brackets."""
    parts = []
    for kind, counts in row.get("units", {}).items():
        text = f"{len(counts)} x {counts[0]} {kind}" if len(set(counts)) == 1 else f"{sum(counts)} {kind}"
        parts.append(f"({text})" if kind in row.get("whole", {}) else text)
    return ", ".join(parts)


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each kind."""
    lines = [
        "| kind | classes | built here | derived | cut and equal | share | goal | heads and neurons | half by Wanda | "
        "median seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind, goal in GOALS.items():
        mine = [row for row in rows if row["kind"] == kind]
        built = [row for row in mine if is_built(row)]
        if not built:
            continue
        done = [row for row in built if row["status"] == "done"]
        both = [row for row in done if "heads" in row["cut"] and len(row["cut"]) > 1]
        seconds = statistics.median(row["seconds"] for row in done) if done else 0.0
        lines.append(
            f"| {kind} | {len(mine)} | {len(built)} | {sum('units' in row for row in built)} | "
            f"{len(done)} | {len(done) / len(built):.0%} | {goal:.0%} | "
            f"{len(both)} | {sum(map(is_thinned, done)) if kind in READERS else ''} | {seconds:.1f} |"
        )
    return lines


def name_row(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["model"], row["config"]


def page(rows: Sequence[Mapping[str, Any]], command: str, about: str) -> str:
    """The evidence as Markdown."""
    failed = defaultdict[str, list[str]](list)
    for row in rows:
        if is_built(row) and row["status"] != "done":
            failed[reason(row)].append(row["model"])
    unbuilt = [f"{row['model']} ({row['why']})".replace("|", "/") for row in rows if not is_built(row)]
    listed = sorted(failed.items(), key=lambda pair: -len(pair[1]))
    table = [
        f"| {row['model']} | {row['kind']} | {row['status']} | {describe_units(row)} | "
        f"{', '.join(f'{count} {kind}' for kind, count in row.get('cut', {}).items())} | "
        f"{row.get('seconds', math.nan):.1f} |"
        for row in rows
        if is_built(row)
    ]
    return "\n".join(
        [
            "# Families of transformers",
            "",
            "Every model class of transformers' auto-mappings with a tiny configuration and random weights: opened",
            "from its folder, which derives the family if no table is written for it; 25 % of the heads and neurons",
            "of each layer taken out by magnitude; saved; loaded by transformers' auto class in a process that can't",
            "import secateur. *Cut and equal*: logits and eight tokens generated with the cache are those of the cut",
            "in memory, and those generated without the cache. *Heads and neurons*: of these, both were cut;",
            "elsewhere one of them stays whole, or both, as in state-space models: there 25 % of the layers go.",
            "*Half by Wanda*: of a copy from the folder, `wanda` zeroed half of the single weights, and zeros are",
            f"{LEAST:.0%} or more of all that matrices in layers hold.",
            "Shares are of the classes whose tiny model could be built and run.",
            "Of models of several parts the one that reads texts is cut, or the first that a refusal names,",
            "and they get tokens alone: there heads stay whole where its config can't say what is left of them.",
            "",
            *summarise(rows),
            "",
            "## Failures by reason",
            "",
            "| classes | reason | which |",
            "| ---: | --- | --- |",
            *(f"| {len(models)} | {why} | {', '.join(models)} |" for why, models in listed),
            "",
            "## Not half by Wanda",
            "",
            *(
                f"- {row['model']} ({describe_thinned(row)})"
                for row in rows
                if row["status"] == "done"
                if row["kind"] in READERS and not is_thinned(row)
            ),
            "",
            "## Not built",
            "",
            *(f"- {line}" for line in unbuilt),
            "",
            "## Classes",
            "",
            "Units: sites x units of each, in brackets those that stay whole. Seconds of one core: open, derive, cut.",
            "",
            "| class | kind | outcome | units | cut | seconds |",
            "| --- | --- | --- | --- | --- | ---: |",
            *table,
            "",
            f"`{command}`: {about}",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="model classes, or beginnings of names")
    parser.add_argument("--kind", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--jobs", type=int, default=2, help="classes at a time")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for a class in each of both processes")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="only N classes of each kind")
    parser.add_argument("--keep", type=Path, help="leave models and results in this folder")
    parser.add_argument("--show", action="store_true", help="what the processes write to standard error, too")
    parser.add_argument(
        "--write", action="store_true", help="write the pages though not all were asked for; other rows stay"
    )
    parser.add_argument("--failed", action="store_true", help="only those that failed last time")
    parser.add_argument("--serve", choices=["make", "read"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        lister = Server("read", folder / "cache")
        every = lister.ask("list")["classes"]
        lister.close()
        classes = [row for row in every if row["kind"] in options.kind]
        if options.only:
            classes = [row for row in classes if row["model"].startswith(tuple(options.only))]
        if options.first:
            place = Counter[str]()
            chosen = []
            for row in classes:
                place[row["kind"]] += 1
                chosen += [row] if place[row["kind"]] <= options.first else []
            classes = chosen
        known = {name_row(row): row for row in json.loads(ROWS.read_text(encoding="utf-8"))} if ROWS.is_file() else {}
        done = {name for name, row in known.items() if row["status"] == "done" and options.failed}
        tried = [row for row in classes if name_row(row) not in done]
        writes = options.write or (options.kind == list(KINDS) and not (options.only or options.first))

        def keep(row: dict[str, Any]) -> None:
            """Rows of a run that is interrupted count, too."""
            known[name_row(row)] = row
            if not writes:
                return
            text = json.dumps([known[name_row(row)] for row in every if name_row(row) in known], indent=1) + "\n"
            ROWS.with_suffix(".new").write_text(text, encoding="utf-8")
            ROWS.with_suffix(".new").replace(ROWS)

        collect(tried, folder, options, keep)
        rows = [known[name_row(row)] for row in (every if writes else classes) if name_row(row) in known]
    from importlib.metadata import version

    command = "python " + " ".join(["benchmarks/families.py", *sys.argv[1:]])
    versions = f"torch {version('torch')}, transformers {version('transformers')}"
    about = f"{time.monotonic() - start:.0f} s on {os.cpu_count()} cores, {versions}."
    if len(tried) < len(rows):
        about += f" {len(rows) - len(tried)} classes were not tried again."
    text = page(rows, command, about)
    print(text)
    if writes:
        (OUT / "families.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
