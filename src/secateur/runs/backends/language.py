"""Backend of transformers models in memory, which read texts."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur._utils import devices, distributed, modes, plugins
from secateur._utils.batches import Batch
from secateur._utils.outputs import of_labels
from secateur._utils.tokenizers import Tokenizer
from secateur.data import labels as labelling
from secateur.data import masking, texts
from secateur.errors import DataError, InputError, UnsupportedError
from secateur.measure import generation, latency, loyalty, quality, size, sparsity, statistics
from secateur.measure.statistics import Values
from secateur.methods import indices, timing
from secateur.methods.predictions import tells_labels, tells_masked, tells_numbers
from secateur.methods.protection import read_protection
from secateur.recover.distillation import teachers
from secateur.recover.quantization import quantise
from secateur.runs import keywords, memory_plan, memory_steps, places, sources
from secateur.runs.backends import Backend, Row, axes_of, commonest_share, describe_config, hash_model
from secateur.subjects import Moe, Streamed, Transformer, open_subject
from secateur.subjects import matrices as matrices_of
from secateur.subjects.network import pretrained
from secateur.subjects.transformer import costs, dequantising, low_rank, parts, saving
from secateur.subjects.transformer.offloaded import Offloaded
from secateur.subjects.transformer.subject import Output, Stored, count_positions
from secateur.vocabulary import Budget, Figure, Training, Units

__all__ = [
    "TOKENS", "Language", "Model", "TextBackend", "check_documents", "check_tokens", "classifies", "classifies_tokens",
    "held_batches", "per_batch", "stored_bytes",
]  # fmt: skip

TOKENS = 64
"""Of a sequence of the timed environment, for recipes without an option of their own."""

_WRITE = ("AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq", "AutoModelForImageTextToText")
"""Automatic classes of models whose names end otherwise."""

_WITH_CACHE = ("kv_cache", "state_cache", "memory", "served_memory")
"""Measures that caches count in."""

_HIDDEN_STATES = (
    "; the state cache as predicted is the last inputs of convolutions alone, without a state that a mixer keeps beside"
)

_SAME = 1e-4
"""How far apart outputs may be that should be the same but for rounding, relative to their size."""

Model: TypeAlias = str | Path | PreTrainedModel | Transformer
T = TypeVar("T", Transformer, Streamed)


class TextBackend(Backend[T, texts.Corpus, Batch]):
    """What models of texts have in common, in memory or on the disk."""

    family = "language models"
    example = "a folder or a Hub id"
    noun = "texts"
    length = TOKENS

    def takes(self, source: Model) -> bool:
        """Models of transformers, and names that are no function's."""
        if isinstance(source, str | Path):
            return not plugins.names_function(source)
        return isinstance(source, PreTrainedModel)

    def check_config(self, source: Model, recipe: str) -> None:
        """Refuse folders of models that read sounds or images, for recipes on language models calibrate on texts.

        And those that hold no model, or a cut network.
        """
        places.refuse_other(source)
        if isinstance(source, str | Path) and pretrained.is_pretrained(source) and not pretrained.reads_texts(source):
            if saving.is_reshaped(json.loads((Path(source) / "config.json").read_text("utf-8"))):
                raise UnsupportedError(
                    f"{source} was cut as a network and in no whole units, and {recipe} goes by layers, heads and "
                    "neurons: take `secateur prune`, or the model as it was before"
                )
            raise UnsupportedError(
                f"{source} reads sounds or images, and {recipe} works on texts: take a recipe on networks and give it "
                "inputs and classes as data=FILE.npz, such as rethinking_pruning_value, or `secateur prune`, without "
                "data or with such"
            )

    def read(
        self, data: str | Path | Sequence[str] | texts.Corpus, text: str = "text", label: str = labelling.DEFAULT
    ) -> texts.Corpus:
        """The texts in `data`, or those that an index keeps; texts and classes (none for "") are in the columns named.

        Raises `DataError` for a column that was named and that is not there.
        """
        if indices.is_index(data):
            return sources.read_index(data, text=text, label=label)  # type: ignore[no-any-return]
        corpus = texts.read(data, column=text, label=label)
        files = texts.files(Path(data)) if isinstance(data, str | Path) and Path(data).exists() else []
        if files and all(file.suffix == ".txt" for file in files):
            labelling.unnamed(f"{corpus.name} holds lines of text, which have no columns", text=text, label=label)
        return corpus

    def check(self, subject: T, options: Mapping[str, object]) -> None:
        """Refuse an option `length` or `..._length` beyond the model's table of positions; rotary ones have no end."""
        most = count_positions(subject.model)
        for name, value in _longer(options, most):
            raise InputError(f"{name}={value} is beyond the model's {most} positions: give at most {name}={most}")

    def note_lengths(self, subject: T, options: Mapping[str, object]) -> list[str]:
        """A note for each such option beyond the positions that the configuration names, for rotary ones may be."""
        most = getattr(subject.model.config.get_text_config(), "max_position_embeddings", None)
        return [
            f"{name}={value} is beyond the {most} positions that the model was made for (max_position_embeddings), "
            f"where what it gives may be of no use: take at most {name}={most}"
            for name, value in _longer(options, most)
        ]

    def find_protected(self, subject: T, options: Mapping[str, object]) -> Collection[str]:
        """The matrices that the protect.json of a recipe leaves as they are."""
        file = str(options.get("protect") or "")
        return read_protection(file, subject).stays if Path(file).is_file() else ()

    def make_example(self, subject: T, environment: latency.Environment) -> dict[str, Tensor]:
        """A batch of the size that is timed."""
        return subject.example(environment.batch, environment.length or TOKENS)

    def save(self, subject: T, folder: Path) -> None:
        """The model and all that travels with it."""
        subject.save(folder)

    def saved_in(self, folder: Path) -> bool:
        """Whether there is a config of transformers."""
        return (folder / "config.json").is_file()

    def load_line(self, folder: Path, name: str) -> str:
        """The lines of Python that load the model in `folder`, which the reader knows as `name`."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        flag = ", trust_remote_code=True" if "auto_map" in config else ""
        if (folder / "modules.json").exists():
            library, call = "sentence_transformers", "SentenceTransformer"
        else:
            automatic = _choose_automatic("".join(config.get("architectures") or []).removeprefix("Secateur"))
            library, call = "transformers", f"{automatic}.from_pretrained"
        imports, model = f"from {library} import {call.split('.')[0]}", f'{call}("{name}"{flag})'
        if low_rank.has_branches(folder / low_rank.FOLDER):
            imports += "\nfrom peft import PeftModel"
            model += f'\nmodel = PeftModel.from_pretrained(model, "{name}/{low_rank.FOLDER}")'
        return f"{imports}\n\nmodel = {model}"


def _lack_values(model: nn.Module) -> UnsupportedError:
    """What is said of a model with weights of which there are shapes only."""
    away = [weight.is_meta for weight in model.parameters()]
    what = f"{sum(away)} of its {len(away)} parameters"
    return UnsupportedError(f"{type(model).__name__} has no values in {what} (device meta): load its weights")


def _longer(options: Mapping[str, object], most: int | None) -> list[tuple[str, int]]:
    """Names and values of the options `length` and `..._length` above `most`, where that is known."""
    if most is None:
        return []
    named = [(name, value) for name, value in options.items() if name.rpartition("_")[2] == "length"]
    return [(name, value) for name, value in named if isinstance(value, int) and value > most]


def _choose_automatic(architecture: str) -> str:
    """The automatic class of transformers that makes a class: the one that its name tells, or else of another task."""
    task = re.search(r"For[A-Z]\w*$", architecture.replace("LMHeadModel", "ForCausalLM"))
    made_by = saving.list_automatic(architecture)
    likely = (f"AutoModel{task[0]}" if task else "AutoModel", *_WRITE, *made_by)
    return next((name for name in likely if name in made_by), "AutoModel")


def _serve(subject: Transformer, batch: Batch, weights: float) -> float:
    """Bytes of so many weights, caches and one activation of `batch`, as the subject's profile says; as counted."""
    profile = subject.profile
    assert profile is not None
    keys, states = size.cache_numbers(subject.model, subject.arguments(batch))
    activations = float(batch["input_ids"].numel() * subject.hidden_size)
    caches = keys * profile.cache + states * profile.states
    return weights * profile.weights + caches + activations * profile.buffers


class Language(TextBackend[Transformer]):
    """Models of transformers, of text: generative, encoders, classifiers."""

    def open(
        self, source: Model, device: str | None = None, data: texts.Corpus | None = None, inputs: object = None
    ) -> Transformer:
        """The model as a subject, on the device.

        For "auto" a folder is split over all devices as it is read, and a model in memory stays where it lies.
        """
        split = device if device == "auto" and isinstance(source, str | Path) else None
        subject = source if isinstance(source, Transformer) else open_subject(source, device_map=split)
        if device == "auto":
            for module in subject.head:
                module.to(devices.find_device(subject.model))
        elif device is not None:
            for module in (subject.model, *subject.head):
                modes.move_to_device(module, device)
        return subject

    def make_floats(self, subject: Transformer) -> Transformer:
        """See `dequantising.make_floats`: integers of a folder are floats already, as it was opened."""
        return subject.make_floats()

    def open_part(self, source: Model, part: str) -> Transformer:
        """The part with that name, see `subjects.transformer.parts`."""
        if isinstance(source, Transformer):
            raise InputError(f"part={part} is of a model that is opened here: give its folder, its Hub id or the model")
        return parts.open_part(source, part)

    def check_place(self, subject: Transformer, recipe: str, *, by_blocks: bool, lacking: str | None = None) -> None:
        """Refuse models that are offloaded, or split by another hand than Accelerate's, or in several processes.

        Raises `UnsupportedError`.
        """
        model, weights = type(subject.model).__name__, list(subject.model.parameters())
        away = sum(weight.is_meta for weight in weights)
        if away and isinstance(subject, Offloaded):
            if lacking == "":
                return
            own = f"say {lacking}, " if lacking else ""
            way = ", give its folder and stream=True" if by_blocks and lacking is None else ""
            raise UnsupportedError(
                f"{model} is offloaded, {away} of its {len(weights)} parameters are not in memory, and {recipe} needs "
                f"all of them at once, as training and gradients do: {own}open it without device_map where memory "
                f"holds it{way}, or take a recipe that works block by block, such as wanda"
            )
        if away:
            raise _lack_values(subject.model)
        places = sorted({str(weight.device) for weight in weights})
        if len(places) < 2 or by_blocks:
            return
        where = f"{model} is split over {' and '.join(places)}"
        if not devices.is_fixed(subject.model):
            raise UnsupportedError(f"{where}, and nothing brings its states along: open it with device_map")
        if distributed.count() > 1:
            raise UnsupportedError(f"{where}, and {recipe} trains it in one process: start a single one")

    def describe_memory(
        self,
        subject: Transformer,
        budgets: Sequence[Budget],
        options: Mapping[str, object],
        environment: latency.Environment,
    ) -> str:
        """Peak memory of scoring, cutting and training to the largest of the budgets; "" where it can't be planned.

        A recipe that has adapters of its own, and no weight for the original's logits, tunes on a task without asking.
        """
        share = memory_steps.find_share(budgets, subject.units().cost()["params"])
        batch, length, training = (options.get(name) for name in ("train_batch", "train_length", "training"))
        how = Training().merge(training if isinstance(training, str) else "")
        try:
            plan = memory_plan.plan_memory(
                partial(memory_plan.outline, subject), type(subject.model).__name__, share=share,
                batch=batch if isinstance(batch, int) else 16,
                length=length if isinstance(length, int) else environment.length or TOKENS,
                device=environment.device, training=keywords.add_adapters(how, options),
                asks="lora_rank" not in options or "logit" in options,
            )  # fmt: skip
        except UnsupportedError:
            return ""
        return memory_plan.describe(plan, environment.device)

    def load_any(self, source: Model, device: str | None = None) -> Model:
        """Quantised models can be measured, though not pruned."""
        split = device if device == "auto" else None
        if isinstance(source, str | Path):
            return open_subject(source, quantised=True, device_map=split)
        if not dequantising.has_integers(source.model if isinstance(source, Transformer) else source):
            return source
        subject = copy.copy(source) if isinstance(source, Transformer) else open_subject(source)
        if subject.stored is None:
            bits, held = dequantising.count_bytes(subject.model)
            behind = (weight for module in subject.head for weight in module.parameters())
            subject.stored = Stored(bits, held + float(sum(one.numel() * one.element_size() for one in behind)))
        return subject

    def fit_data(self, data: texts.Corpus, subject: Transformer) -> texts.Corpus:
        """The texts with the model's own numbers of classes, of texts or of words, or without labels where it has none.

        Chats are written out by the model's chat template, or joined for a model that writes no text.

        Raises `InputError` without a tokenizer, for chats without a chat template, and where it finds tokens in the
        texts that the model does not know; `UnsupportedError` for documents that the model can't keep apart, and for a
        model that reads something else than texts.
        """
        subject.check_texts()
        texts.need_tokenizer(subject.tokenizer)
        data = data.render(subject.tokenizer) if subject.causal else data.join()
        check_tokens(data, subject)
        if data.packing == "documents":
            check_documents(subject)
        config = subject.model.config
        if classifies_tokens(subject):
            return data.words_labelled(config.label2id, config.num_labels)
        if data.tagged is not None:  # it reads the words as one text
            data = replace(data, tagged=None, classes=(), flaw="")
        if tells_labels(subject):  # a text has one label here, which says nothing of the others
            return replace(data, labels=None, classes=(), numbers=None, flaw="")
        if tells_numbers(subject):
            return _with_numbers(data, config.num_labels)
        return data.labelled(config.label2id, config.num_labels) if classifies(subject) else data

    def environment(
        self, subject: Transformer, batch: int | None, length: int | None, threads: int | None,
        device: str | None = None,
    ) -> latency.Environment:  # fmt: skip
        """The model is measured where it is."""
        kind = str(subject.model.dtype).removeprefix("torch.")
        place, threads = str(subject.model.device), threads or torch.get_num_threads()
        return latency.Environment(batch or self.batch, length or TOKENS, threads, place, kind)

    def digest(self, subject: Transformer) -> str:
        """sha256 of the configuration and of every tensor."""
        return hash_model(describe_config(subject.model.config), subject.model)

    def forward(self, subject: Transformer, batch: Batch) -> Output:
        """What is timed."""
        return subject.forward(batch)

    def check_clock(self, subject: Transformer, environment: latency.Environment) -> None:
        """Refuse weights that have no values, decoding without a cache, and a runtime that can't run the model."""
        if any(weight.is_meta for weight in subject.model.parameters()) and not devices.is_offloaded(subject.model):
            raise _lack_values(subject.model)
        timing.check_place(subject, environment)
        if environment.phase == "decode" and (why := self.find_unmeasured(subject).get("kv_cache")):
            raise UnsupportedError(f"environment=decode can't be timed: {why}; take environment=prefill")

    def make_run(self, subject: Transformer, environment: latency.Environment) -> Callable[[], object]:
        """A pass over whole sequences, or one step of decoding, by the environment's timer."""
        return timing.make_run(subject, environment)

    def matrices(self, subject: Transformer) -> dict[str, Tensor]:
        """Name -> weights [d_out, d_in] of the blocks' matrices; quantised ones as they are multiplied."""
        found = matrices_of.matrices(subject.model, subject.layers()).items()
        if subject.stored is None:
            away = devices.find_offloaded(subject.model)
            return {
                name: matrix.view(away[matrix.leaf]) if matrix.leaf in away else matrix.weight for name, matrix in found
            }
        return {name: matrix.view(quantise.dense(matrix.parameter).detach()) for name, matrix in found}

    def sizes(self, subject: Transformer, batch: Batch) -> Row:
        """Parameters, zeros, bytes of the weights as saved and as packed, FLOPs of `batch`, a decoder's KV cache.

        What `find_unmeasured` tells of is left out. The modules that a sentence-transformers folder has after its
        transformer count, for they are saved with it.
        """
        weights = [p for module in (subject.model, *subject.head) for p in module.parameters()]
        stored, bits = stored_bytes(subject), None if subject.stored is None else subject.stored.bits
        own = float(sum(p.numel() for p in subject.model.parameters()))
        active = {"active_params": Figure(subject.active_params())} if isinstance(subject, Moe) else {}
        row = {  # what is counted comes first: passes of an offloaded model part what is tied
            "params": Figure(float(sum(p.numel() for p in weights))),
            "embedding_params": Figure(float(size.parameters(subject.model)["embedding_params"])),
            "bytes": Figure(stored, unit="B"),
            "flops": Figure(size.flops(subject.model, subject.arguments(batch))),
            **sparsity.figures(self.matrices(subject), stored, bits),
            **active,
        }
        if self.find_unmeasured(subject):
            return row
        if subject.kind == "decoder":
            cache = size.kv_cache_bytes(subject.model, subject.arguments(batch))
            row["kv_cache"] = Figure(cache, unit="B")
            row["memory"] = Figure(row["bytes"].value + cache, unit="B")
            if any(width.state_heads for width in subject.widths()):
                keys, _ = size.cache_numbers(subject.model, subject.arguments(batch))
                row["kv_cache"] = Figure(float(keys * subject.model.dtype.itemsize), unit="B")
                row["state_cache"] = Figure(cache - row["kv_cache"].value, unit="B")
            if subject.profile is not None:
                row["served_memory"] = Figure(_serve(subject, batch, own), unit="B")
        else:
            row["memory"] = row["bytes"]
        return row

    def find_unmeasured(self, subject: Transformer) -> dict[str, str]:
        """What caches count in, of a decoder that hands none back, such as one that keeps it in its own modules."""
        if subject.kind != "decoder":
            return {}
        with torch.random.fork_rng(devices=[]):  # what comes after draws as if nothing had been looked at
            example = subject.example(1, 1)
        try:
            size.kv_cache_bytes(subject.model, subject.arguments(example))
        except UnsupportedError as error:
            costs = subject.units().cost()
            mixers = [index for index, width in enumerate(subject.widths()) if width.state_heads]
            hidden = any(subject.layout.state_sizes(index)[0] == 0 for index in mixers)
            why = f"{error}{_HIDDEN_STATES if hidden else ''}"
            return {measure: why for measure in _WITH_CACHE if measure in costs}
        return {}

    def costs(self, subject: Transformer, environment: latency.Environment) -> dict[str, float]:
        """FLOPs of a batch of the size that is timed, and what a decoder caches of it."""
        return per_batch(subject.units(batch=environment.batch, length=environment.length or TOKENS))

    def compare(
        self, original: Transformer, student: Transformer, held_out: texts.Corpus, environment: latency.Environment
    ) -> tuple[Row, Row, Row]:
        """(before, after, both) by what the models give.

        Perplexity of language models; accuracy of labelled classifiers and, on masked tokens, of masked language
        models; accuracy and macro F1 of labelled words; correlations of one number per text with labels that are
        numbers; fidelity of embeddings and states; and the student's loyalty wherever both give logits of as many
        classes, of texts or of tokens, labelled or not, or as many numbers per text. Where several labels of a text may
        hold, each is a prediction of its own, yes or no.

        Raises `InputError` for two models of different tokenizers.
        """
        if original.tokenizer is None:
            raise DataError("the model has no tokenizer to measure quality with: give one beside it")
        if student.tokenizer not in (None, original.tokenizer):  # both will read the same token ids
            teachers.check_tokens(student, original)
        pair, tally = (original.forward, student.forward), loyalty.Tally()
        length = environment.length or TOKENS
        batches = held_batches(held_out, original.tokenizer, packed=original.causal, length=length)
        if original.causal:
            before, after = quality.perplexities(pair, batches, watch=tally.add)
            return {"perplexity": before}, {"perplexity": after}, tally.figures()
        if classifies(original) and held_out.labels is not None:
            before, after = quality.accuracies(pair, batches, watch=tally.add)
            return {"accuracy": before}, {"accuracy": after}, tally.figures()
        read = [batch for batch in batches if batch["attention_mask"].any()]
        if not read:
            raise DataError(f"{held_out.name} holds no text that the tokenizer finds a token in: give others")
        both = _fidelity((original, student), read)
        if _tell_numbers(original, student):
            ours, theirs = (_numbers(subject, read) for subject in (student, original))
            first, second = (_correlations(numbers.flatten().tolist(), read) for numbers in (theirs, ours))
            return first, second, both | loyalty.numbers(ours.numpy(), theirs.numpy())
        if _predict_masked(original, student):
            before, after = quality.accuracies(pair, masking.Masked(batches, original.tokenizer), watch=tally.add)
            return {"accuracy": before}, {"accuracy": after}, both | tally.figures()
        if classifies_tokens(original) and held_out.tagged is not None:
            classified = quality.classifications(pair, map(_with_tokens, read), watch=tally.add)
            first, second = ({name: figures[name] for name in ("accuracy", "f1")} for figures in classified)
            return first, second, both | tally.figures()
        if not _as_many_classes(original, student):
            return {}, {}, both
        if tells_labels(original):
            return {}, {}, both | _label_loyalty(pair, read)
        with torch.inference_mode():
            for batch in map(_with_tokens, read):
                tally.add([forward(batch).prediction for forward in pair], batch)
        return {}, {}, both | tally.figures()

    def run_tasks(
        self, subject: Transformer, tasks: Sequence[str], folder: str | Path | None = None, limit: int | None = None
    ) -> Row:
        """Figures of lm-eval tasks, of its own or of YAML files in `folder`, on the first `limit` documents of each."""
        return generation.evaluate(subject.model, subject.tokenizer, tasks, include_path=folder, limit=limit)

    def check_tasks(self, subject: Transformer) -> None:
        """Raise `InputError` for a model that writes no text, or has no tokenizer."""
        if subject.kind != "decoder" or subject.tokenizer is None:
            raise InputError("lm-eval tasks need a language model with its tokenizer")

    def class_names(self, subject: Transformer) -> tuple[str, ...]:
        """Those of a classifier of texts, by its config."""
        names = subject.model.config.id2label if classifies(subject) else {}
        return tuple(str(names[number]) for number in sorted(names))

    def chance(self, subject: Transformer, held_out: texts.Corpus) -> dict[str, float]:
        """The share of the commonest class of the texts, where the model gives one class per text."""
        return commonest_share(held_out.labels or ()) if classifies(subject) else {}

    def inspect(self, source: Model, *, batch: int, length: int, **options: object) -> dict[str, Any]:
        """What could go in a model, and what that would save."""
        given = [f"the option {name!r}" for name, value in options.items() if value is not None]
        if given:
            verb = "is" if len(given) == 1 else "are"
            raise UnsupportedError(
                f"{' and '.join(given)} {verb} only for networks, given as file.py:function or as a module"
            )
        places.refuse_other(source)
        subject = self.make_floats(self.open(source))
        units = subject.units(batch=batch, length=length)
        name = type(subject.model).__name__
        found = {"model": name, "kind": subject.kind, "cost": units.cost(), "axes": axes_of(units)}
        return found | {"stays": _list_lasting(subject)}


def _list_lasting(subject: Transformer) -> list[dict[str, Sequence[str]]]:
    """[{"axes", "reason"}] of what can't be cut: whole kinds, and layers by their numbers."""
    layout, layers = subject.layout, dict[str, list[str]]()
    for layer, why in costs.find_lasting(layout).items():
        layers.setdefault(why, []).append(f"layers.{layer}")
    kinds = {"experts", *(site.kind for site in costs.sites(layout).values())}  # which have no sites where they stay
    found = [{"axes": [axis], "reason": why} for axis, why in layout.whole.items() if axis in kinds]
    if "layers" not in layout.whole:
        found += [{"axes": names, "reason": why} for why, names in layers.items()]
    return found


def per_batch(units: Units) -> dict[str, float]:
    """The costs that depend on the batch, of units that were counted at its size."""
    whole = units.cost()
    return {name: whole[name] for name in ("flops", "kv_cache", "memory") if name in whole}


def classifies(subject: Transformer) -> bool:
    """Whether the model gives one class per text, so that the data's labels are its task."""
    return type(subject.model).__name__.endswith("ForSequenceClassification")


def classifies_tokens(subject: Transformer) -> bool:
    """Whether the model gives a class for each token, so that labels of words are its task."""
    return type(subject.model).__name__.endswith("ForTokenClassification")


def check_tokens(corpus: texts.Corpus, subject: Transformer | Streamed) -> None:
    """Raise `InputError` for texts with a token that the model has no embedding of: it would fail inside of torch."""
    size = subject.model.get_input_embeddings().weight.shape[0]
    token = texts.outside(corpus, subject.tokenizer, size, packed=subject.causal)
    if token is not None:
        raise InputError(
            f"the tokenizer gives token {token} for {corpus.name}, and the model knows those below {size}: use the "
            "model's own tokenizer"
        )


@torch.inference_mode()
def check_documents(subject: Transformer) -> None:
    """Raise `UnsupportedError` for a model that can't keep the documents of a block apart (packing="documents").

    Another first document must change nothing of what the model says of the second.
    """
    model = type(subject.model).__name__
    if not subject.causal:
        raise UnsupportedError(f"packing=documents is of language models, and {model} is none: leave it out")
    size = subject.model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(16).remainder(size)[None].repeat(2, 1)
    other = ids.clone()
    other[:, :8] = (ids[:, :8] + size // 2).remainder(size)
    places = torch.arange(8).repeat(2)[None].repeat(2, 1)
    with modes.evaluating(subject.model):
        first, second = (subject.forward({"input_ids": one, "position_ids": places}).prediction for one in (ids, other))
    apart = (first[:, 8:] - second[:, 8:]).float().norm() / first[:, 8:].float().norm().clamp(min=1e-9)
    if not apart < _SAME:
        raise UnsupportedError(
            f"{model} with {subject.model.config._attn_implementation} attention does not keep packed documents apart: "
            "open it with attn_implementation sdpa or eager, or leave packing=documents out"
        )


def _with_numbers(corpus: texts.Corpus, outputs: int) -> texts.Corpus:
    """The texts with numbers for labels, as a model of one number tells them; names tell it nothing.

    A text has one label, which is none for a model of several numbers.
    """
    if outputs > 1:
        return replace(corpus, labels=None, classes=(), numbers=None, flaw="")
    if corpus.flaw and corpus.numbers is None:
        raise DataError(corpus.flaw)
    numbers = corpus.numbers
    if corpus.labels is not None and not corpus.classes:
        numbers = [float(label) for label in corpus.labels]
    return replace(corpus, labels=None, classes=(), numbers=numbers, flaw="")


def stored_bytes(subject: Transformer) -> float:
    """Bytes of the weights as they stand in files."""
    if subject.stored is not None:
        return subject.stored.bytes
    weights = [p for module in (subject.model, *subject.head) for p in module.parameters()]
    return float(sum(p.numel() * p.element_size() for p in weights))


def _as_many_classes(*subjects: Transformer) -> bool:
    """Whether all give logits, of texts or of tokens, of the same number of classes, more than one, or of labels."""
    kinds = {(int(one.model.config.num_labels), tells_labels(one)) for one in subjects}
    return all(one.output == "logits" for one in subjects) and len(kinds) == 1 and kinds != {(1, False)}


def _tell_numbers(*subjects: Transformer) -> bool:
    """Whether all tell numbers of each text, and as many."""
    counts = {int(one.model.config.num_labels) for one in subjects}
    return all(classifies(one) and tells_numbers(one) for one in subjects) and len(counts) == 1


def _predict_masked(*subjects: Transformer) -> bool:
    """Whether all tell masked tokens, and their tokenizer has a mask."""
    return all(tells_masked(one) for one in subjects) and (subjects[0].tokenizer.mask_token_id is not None)


def held_batches(held_out: texts.Corpus, tokenizer: Tokenizer, *, packed: bool, length: int) -> list[dict[str, Tensor]]:
    """At most a thousand held-out sequences, in batches of up to 16, or one by one where there are fewer.

    As in `calibration.make_feed`, as many stand in a batch as have 4096 tokens together: two models give their logits.

    Texts with numbers for labels have them as `labels`, float64.
    """
    size = min(16, max(1, 4096 // max(1, length)))
    try:
        found, count = texts.batches(held_out, tokenizer, packed=packed, batch=size, length=length), 1024 // size
    except DataError:
        found, count = texts.batches(held_out, tokenizer, packed=packed, batch=1, length=length), 1024
    batches = found.take(count)
    if held_out.numbers is not None and not packed:
        numbers = torch.tensor(held_out.numbers, dtype=torch.float64)
        batches = [{**batch, "labels": numbers[found.rows(place)]} for place, batch in enumerate(batches)]
    return batches


@torch.inference_mode()
def _numbers(subject: Transformer, batches: Sequence[Batch]) -> Tensor:
    """[n, C]: what the model tells of each text."""
    return torch.cat([subject.forward(_with_tokens(batch)).prediction.float().cpu() for batch in batches])


@torch.inference_mode()
def _label_loyalty(pair: Sequence[Callable[[Batch], Output]], batches: Sequence[Batch]) -> Row:
    """Loyalty in each label of each text, where several labels of a text may hold."""
    tally = loyalty.Tally()
    for batch in map(_with_tokens, batches):
        tally.add([of_labels(forward(batch).prediction) for forward in pair], {})
    return tally.figures()


def _correlations(told: Values, batches: Sequence[Batch]) -> Row:
    """How what a model tells of each text goes with the labels; nothing without labels, or where all are equal."""
    if "labels" not in batches[0]:
        return {}
    labels = torch.cat([_with_tokens(batch)["labels"] for batch in batches]).tolist()
    if len(set(labels)) < 2:
        return {}
    return {"label_pearson": statistics.pearson(told, labels), "label_spearman": statistics.spearman(told, labels)}


def _fidelity(pair: Sequence[Transformer], batches: Sequence[Batch]) -> Row:
    """How alike embeddings or states are; nothing of teachers that answer as one, whose states have no mean."""
    try:
        teacher, student = (torch.cat([_embed(one, _with_tokens(batch)).cpu() for batch in batches]) for one in pair)
    except UnsupportedError:
        return {}
    return quality.fidelity(teacher, student)


def _with_tokens(batch: Batch) -> Batch:
    """The texts of a batch that have tokens: in others is nothing to read, and two models can't differ on them."""
    rows = batch["attention_mask"].any(1)
    return batch if bool(rows.all()) else {name: tensor[rows] for name, tensor in batch.items()}


@torch.inference_mode()
def _embed(subject: Transformer, batch: Batch) -> Tensor:
    """[B, d]: the model's own sentence embedding, or the mean of its last hidden states over real tokens."""
    if subject.output == "embedding":
        return subject.forward(batch).prediction
    states = subject.forward(batch, hidden=True).hidden[-1].float()
    mask = batch["attention_mask"][..., None].to(states)
    return (states * mask).sum(1) / mask.sum(1)
