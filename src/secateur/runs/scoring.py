"""Compressed models through tasks, for studies: compress once, ask everything, let go; resumed model by model.

folder/NAME/model.json     perplexity, agreement with the original, bytes
folder/NAME/TASK.jsonl     a line for each answer
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from secateur._utils import http
from secateur._utils.disk import atomic_write
from secateur.clients import chat
from secateur.clients.completions import Completer, Completion, Local, Served
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.errors import InputError
from secateur.measure import size
from secateur.methods import tasks as asking
from secateur.methods.tasks import Judge, Line, Task
from secateur.recover.training import loop, lora, objectives
from secateur.runs.backends.language import Language
from secateur.runs.compression import DENSE, Config, compress, count_bytes
from secateur.subjects import Transformer
from secateur.vocabulary import Figure, Training

__all__ = ["Held", "Model", "check_models", "check_texts", "is_served", "open_judge", "score_model", "score_served"]

RANK = 8
"""Of the adapters that win back what was lost."""


@dataclass(frozen=True, slots=True)
class Model:
    """What one model gave. figures: perplexity, label_loyalty, ... as far as they could be measured."""

    name: str
    lines: Mapping[str, Sequence[Line]]
    """Task -> its lines."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    params: float = 0.0
    """Weights that are not zero; 0 where that is not known."""
    bytes: float = 0.0
    seconds: float = 0.0
    """Of writing all answers."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Held:
    """What models are measured and recovered on: texts for calibration and training, texts held out, their length.

    traces: what configs of that variant are calibrated on.
    """

    train: Corpus
    judged: Corpus
    length: int
    traces: Corpus | None = None

    def calibration(self, config: Config) -> Corpus:
        """The texts that a config is calibrated on."""
        return self.traces if self.traces is not None and config.variant == "traces" else self.train

    @classmethod
    def of(cls, corpus: Corpus, length: int) -> Held:
        """A twentieth of the texts is held out, the same one always."""
        train, judged = corpus.split(seed=0)
        return cls(train, judged, length)


def open_judge(judge: str, name: str, original: Transformer, device: str = "") -> Judge | None:
    """ "likelihood" (of the original), or a language model by address, folder or Hub id, that rates from 1 to 10."""
    if not judge:
        return None
    if judge == "likelihood":
        return asking.judge_by_likelihood(original)
    return asking.judge_by_model(chat.open_model(judge, name, device=device))


def score_model(
    original: Transformer,
    config: Config,
    tasks: Sequence[Task],
    held: Held,
    folder: Path,
    *,
    passes: int = 1,
    batch: int = 32,
    judge: Judge | None = None,
    recover: int = 0,
    protect: Collection[str] = (),
    harness: Sequence[str] = (),
) -> Model:
    """Compress, measure, and ask all tasks; a model whose answers are all there is not compressed again.

    recover: steps by which LoRA adapters on the compressed model learn from the original before it is asked; they stay
    beside its weights, so that zeros stay zero. harness: names of lm-eval tasks, for `figures`. Other arguments: see
    `run_task` and `compress`.
    """
    name = f"{config}, recovered" if recover else str(config)
    place = folder / (config.digest + (f"-{recover}" if recover else "") + _name_protected(protect))
    place.mkdir(parents=True, exist_ok=True)
    file = place / "model.json"
    if not file.exists() or any(_count_left(task, passes, place) for task in tasks):
        student = original
        if config != DENSE:
            corpus, work = held.calibration(config), place / "work"
            student = compress(original, config, corpus, work, length=held.length, protect=protect)
        student = _same_place(student, original)
        # Measured as it is stored, before adapters stand beside the weights.
        params, stored = _count_params(student), count_bytes(student, config, protect)
        if recover:
            student = student.copy()
            _recover(student, original, held, recover, place / "training")
        figures, notes = _measure(original, student, held)
        figures |= Language().run_tasks(student, harness) if harness else {}
        for task in tasks:
            _run(task, Local(student.model, student.tokenizer, name=name, batch=batch), place, passes, judge, batch)
        row = {
            "name": name, "figures": {key: asdict(one) for key, one in figures.items()}, "params": params,
            "bytes": stored, "notes": notes,
        }  # fmt: skip
        atomic_write(file, json.dumps(row, indent=1))
    row = json.loads(file.read_text("utf-8"))
    figures = {key: Figure(**one) for key, one in row["figures"].items()}
    lines = {task.name: asking.run_task(task, _NOBODY, file=_file(task, place), passes=passes, judge=judge)
             for task in tasks}  # fmt: skip
    return Model(name, lines, figures, row["params"], row["bytes"], _count_seconds(lines), tuple(row["notes"]))


def score_served(
    url: str, tasks: Sequence[Task], folder: Path, *, passes: int = 1, judge: Judge | None = None, label: str = ""
) -> Model:
    """The same of a model behind a server, "http://host/v1#NAME": what it weighs is not known. label: its name."""
    address, name = _split_address(url)
    place = folder / f"served-{Config(url).digest}"
    place.mkdir(parents=True, exist_ok=True)
    server = Served(chat.Server(address, name))
    lines = {task.name: _run(task, server, place, passes, judge) for task in tasks}
    return Model(label or name, lines, seconds=_count_seconds(lines), notes=("served: no perplexity, no bytes",))


def check_models(subject: Transformer, tasks: Sequence[Task], beside: Sequence[str]) -> None:
    """Refuse, before any is asked, items that the original can't read whole, and what is no model to stand beside it.

    Raises `DataError` for an item, `InputError` for a place without a model.
    """
    for one in beside:
        if is_served(one):
            _split_address(one)
        elif not Path(one).is_dir():
            raise InputError(f"beside {one!r} is no folder of a model and no address: give one")
        elif not Path(one, "config.json").is_file():
            raise InputError(f"beside {one!r} is no model folder: it has no config.json")
    original = Local(subject.model, subject.tokenizer, name="the original")
    for task in tasks:
        for item in task.items:
            asking.build_prompt(task, item, original)


def check_texts(subject: Transformer, held: Held, configs: Iterable[Config], *, recover: int = 0) -> None:
    """Refuse, before anything is compressed, texts that hold too little at their length for what is done with them.

    What is held out has a sequence to measure on; the rest a window, where a config is calibrated on it, and a batch
    where adapters learn from it for `recover` steps. Raises `DataError`, as the run itself would.
    """
    read = partial(texts.batches, tokenizer=subject.tokenizer, length=held.length)
    read(held.judged, packed=subject.causal, batch=1)
    if any(one.calibrated and one.variant != "traces" and (one.bits or one.sparsity) for one in configs):
        texts.windows(held.train, subject.tokenizer, 1, held.length, packed=subject.joins_texts)
    if recover:
        read(held.train, packed=subject.joins_texts, batch=8)  # as `_recover`


def _split_address(url: str) -> tuple[str, str]:
    """(server, model) of "http://host/v1#NAME"."""
    address, _, name = url.partition("#")
    if not name:
        raise InputError(f"{url} names no model: give http://host/v1#NAME")
    return address, name


def is_served(source: str) -> bool:
    """Whether a name is a server's address."""
    return http.is_address(source)


def _name_protected(protect: Collection[str]) -> str:
    """What tells models apart of which other modules are protected."""
    return "-" + hashlib.sha256("\n".join(sorted(protect)).encode()).hexdigest()[:8] if protect else ""


def _count_seconds(lines: Mapping[str, Sequence[Line]]) -> float:
    """Of all lines, be it that another run wrote them."""
    return sum(line.seconds for own in lines.values() for line in own)


class _Nobody(Completer):
    """Asked only where all answers are there."""

    name, window = "nobody", float("inf")

    def count(self, prompt: str, how: object) -> int:
        return 0

    def stream(self, prompts: Sequence[str], how: object, seed: int = 0) -> Iterator[Mapping[int, Completion]]:
        raise InputError("answers are missing")


_NOBODY = _Nobody()


def _file(task: Task, place: Path) -> Path:
    return place / f"{task.digest[:12]}.jsonl"


def _run(
    task: Task, completer: Completer, place: Path, passes: int, judge: Judge | None, chunk: int = 64
) -> list[Line]:
    return asking.run_task(task, completer, file=_file(task, place), passes=passes, judge=judge, chunk=chunk)


def _count_left(task: Task, passes: int, place: Path) -> int:
    file = _file(task, place)
    there = {(line.item, line.turn) for line in asking.read_lines(file, task.name)}
    return sum((item.id, turn) not in there for item in task.items for turn in range(passes))


def _same_place(student: Transformer, original: Transformer) -> Transformer:
    """Where the original lies; a folder without a tokenizer reads with the original's if it has as many tokens."""
    if student.tokenizer is None:
        rows = student.model.get_input_embeddings().weight.shape[0]
        if rows < len(original.tokenizer):
            raise InputError(
                f"{student.folder} has no tokenizer, and {rows} tokens, fewer than the original's "
                f"{len(original.tokenizer)}: put its tokenizer beside it"
            )
        student.tokenizer = original.tokenizer
    return student if student is original else Language().open(student, str(original.model.device))


def _count_params(student: Transformer) -> float:
    """Weights that are not zero, embeddings and norms with them."""
    matrices = Language().matrices(student)
    zeros = sum(int((matrix == 0).sum()) for matrix in matrices.values())
    return float(size.parameters(student.model)["params"] - zeros)


def _measure(original: Transformer, student: Transformer, held: Held) -> tuple[dict[str, Figure], list[str]]:
    """Perplexity, and agreement with the original, where both read the same tokens."""
    backend = Language()
    if _read_alike(original, student):
        environment = backend.environment(original, 1, held.length, None)
        _, after, both = backend.compare(original, student, held.judged, environment)
        return {**after, **both}, []
    return {}, ["it has another tokenizer than the original: perplexities can't be compared, and are left out"]


def _read_alike(original: Transformer, student: Transformer) -> bool:
    if student is original:
        return True
    ours, theirs = (one.tokenizer.get_vocab() for one in (student, original))
    return bool(ours == theirs)


def _recover(student: Transformer, original: Transformer, held: Held, steps: int, folder: Path) -> None:
    """Adapters of `RANK` beside the linears learn the original's predictions on the texts."""
    lora.join(student.model, RANK)
    batches = texts.batches(
        held.train, student.tokenizer, packed=student.joins_texts, batch=8, length=held.length, seed=1
    )
    objective = objectives.distil(student.forward, original.forward, output=original.output, fused=True)
    loop.train(
        student.model, batches, objective, Training(steps=steps, lr=1e-3, warmup=0.05), frozen=[original.model],
        checkpoint=folder, dropout=False, title="recovery",
    )  # fmt: skip
