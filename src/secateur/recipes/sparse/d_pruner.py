"""D-Pruner: pruning as a domain-specific extractor.

Zhang et al., "Pruning as a Domain-specific LLM Extractor", Findings of NAACL 2024 (arXiv 2405.06275).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from safetensors import safe_open
from torch import Tensor

from secateur._utils import distributed, storage
from secateur._utils.batches import Batches
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.errors import InputError, RunError, UnsupportedError
from secateur.methods import blockwise
from secateur.recover.training import fused, objectives
from secateur.score import dual, hooks, obs
from secateur.score.dual import DualScore
from secateur.select import weights
from secateur.subjects import Streamed, Transformer
from secateur.subjects.matrices import Matrix, matrices
from secateur.subjects.transformer import blocks
from secateur.vocabulary import Budget, Pattern, Result, Training

CARD = {
    "title": "D-Pruner: Pruning as a Domain-specific LLM Extractor",
    "paper": "https://arxiv.org/abs/2405.06275",
    "cuts": "single weights of the linears inside the blocks, in any share or n of m",
    "recovers": "none: the weights that stay are those of the original",
    "extra": "", "family": "sparse",
    "offloaded": "by=general",
}  # fmt: skip

Scope = Literal["row", "block", "matrix", "layer", "global"]
Read = Callable[[str], Tensor]
"""Name of a matrix -> its scores [d_out, d_in], from the disk."""


@dataclass(frozen=True, slots=True)
class GeneralPass:
    """How general importance G is measured, step 1."""

    general_share: Annotated[float, Gt(0), Le(1)] = 0.48
    """What stays of the weights in the pass that scores G: the paper prunes 52 % of the linears for a model of half."""
    general_samples: Annotated[int, Ge(1)] = 128
    """Windows of general text."""
    damp: Annotated[float, Ge(0)] = 0.01
    """Dampening of the Hessian, as a share of its mean diagonal."""
    floor: int = 1
    """Experts with fewer tokens get the Hessian of all experts of their layer."""


def d_pruner(
    subject: Transformer | Streamed,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    general: str = "",
    by: Literal["dual", "general"] = "dual",
    scope: Scope = "matrix",
    block: Annotated[int, Ge(0)] = 128,
    general_pass: GeneralPass = GeneralPass(general_share=0.48, general_samples=128, damp=0.01, floor=1),
    dual_score: DualScore = DualScore(general_weight=None, published=False, cubic=False),
    samples: Annotated[int, Ge(1)] = 1000,
    train_length: Annotated[int, Ge(2)] = 128,
    packed: bool = True,
    clip: Annotated[float, Ge(0)] = 1.0,
    recompute: bool = False,
    scores: str = "",
    training: Training = Training(epochs=1, batch=8, lr=0.03, warmup=0.1),
    seed: int = 0,
    dry_run: bool = False,
) -> Iterator[Result]:
    """Keep the weights that a domain needs and general skill needs, as they are.

    1. General importance: on open-domain text, block by block, each behind blocks that are pruned already, and 128
       columns at a time, behind the corrections of the columns before: G = w^2 / U_jj^2, U the Cholesky factor of the
       inverse of the damped Hessian. The pruned and corrected weights serve this alone.
    2. A copy of the model descends the domain's loss with a penalty on moving what G holds dear: g~ = g + what the
       penalty adds (`score.dual`). Each weight is updated inside the backward pass (`recover.training.fused`).
    3. Dual importance, summed over the steps, of the weights as they move: I += |g~ w + (g~ w)^2 / (2 N)|.
    4. The original's weights with the largest I stay, to the bit; the others become 0. A smaller budget keeps a subset.

    G and I lie in the run's folder, one file per block; all budgets share them, and so may later runs (`scores`).

    Args:
        subject: a causal language model; it stays as it is. One that is streamed from the disk only by=general.
        data: texts of the domain: prompts with their answers and explanations, or running text.
        budgets: weights=50% (of the matrices of the blocks; embeddings, norms, head and routers stay), or pattern=2:4.
        run: where scores and checkpoints go.
        general: open-domain texts (a file, a folder of them or hub:owner/name), such as the model was trained on; of a
            table, in the column that the texts of `data` are in. A part is held out, and what both models make of it is
            told beside the domain's perplexity.
        by: what the masks are taken from: dual, or general for G alone.
        scope: what is compared: row, block (of columns), matrix, layer or global.
        block: columns of a block; 0 cuts every matrix into 32 blocks.
        general_pass, dual_score: see these classes.
        samples: sequences of domain text; N is how many there are.
        train_length: tokens per sequence, of either text.
        packed: texts run on, cut into sequences of equal length; otherwise one text is one sequence, cut at
            `train_length`, and chats are learned as a whole, whatever completion_only says.
        epochs: passes over the domain's sequences.
        lr: peak learning rate of the descent; 0 scores at the original weights.
        warmup: share of steps in warm-up; then linearly down to 0.
        clip: largest norm of all gradients together, which takes a second backward pass; 0 for no limit and one pass.
        recompute: keep no activations inside a layer, but run it again in the backward pass.
        scores: folder of an earlier run on the same model, whose scores are taken in place of steps 1 to 3.
        seed: of the choice and order of the texts.
        dry_run: nothing is scored: the smallest weights go.

    Departures: G is divided by its mean in each matrix, and the penalty's term is measured in g, with the sign of g
    (`dual.regularise`); as released it is next to nothing, and positive whatever the sign of g (`published`). The
    cubic term, a stand-in for the remainder, is off. There is no loss scaling, so none leaks into the score;
    the copy descends in float32. Exactly int(n share) of n weights that are compared stay. The paper trains on up to
    five passes, in fp16, with sequences of up to 1024 tokens, and 2048 for G.
    """
    weight, batch, column = dual_score.weight, min(training.whole("batch"), samples), run.settings.get("text", "text")
    check(subject, training, descends=batch if by == "dual" and not scores else 0,
          general_needed=not (general or scores or dry_run) and (by == "general" or weight > 0))  # fmt: skip
    width = partial(block_width, block=block)
    targets = {str(budget): blockwise.follow_budget(subject, budget, "d_pruner", scope, width) for budget in budgets}
    notes: tuple[str, ...] = ()
    # A dry run reads it, too: it refuses what the run would.
    corpus, judged = hold_out(texts.read(general, column=column), seed) if general else (None, {})
    read: Read | None = None  # of magnitudes, if None
    if scores:
        read = open_earlier(Path(scores), by, subject)
        judged = judged if corpus is not None and scored_by(Path(scores), corpus) else {}
    elif not dry_run:
        key = {"model": digest(subject)}
        if corpus is not None and (by == "general" or weight):
            windows, notes = texts.windows(
                corpus, subject.tokenizer, general_pass.general_samples, train_length, seed=seed
            )
            measure = partial(general_importance, subject, windows, how=general_pass)
            starved = score_once(run, "general", {**key, "text": corpus.digest}, measure)["starved"]
            if starved:
                notes += (
                    f"{starved:g} matrices of experts saw fewer than {general_pass.floor} general tokens: scored by "
                    "their layer's Hessian",
                )
        read = open_scores(run.folder("general"), subject.layers())
        if by == "dual" and isinstance(subject, Transformer):
            stream = texts.batches(data, subject.tokenizer, packed=packed, batch=batch, length=train_length, seed=seed)
            each = min(samples // batch, len(stream))  # steps of an epoch
            measure = partial(
                dual_importance, subject, stream if each == len(stream) else stream.take(each), read, every=each,
                steps=round(training.number("epochs") * each), samples=each * batch, how=dual_score,
                lr=training.number("lr"), warmup=training.number("warmup"), clip=clip or None, recompute=recompute,
            )  # fmt: skip
            figures = score_once(run, "dual", {**key, "text": data.digest}, measure)
            notes += describe_descent(figures, data.name, samples, few=each < samples // batch)
            read = open_scores(run.folder("dual"), subject.layers())
    for budget in budgets:
        share, pattern = targets[str(budget)]
        student = subject.copy()
        prune(student, run.folder(f"blocks-{budget}"), read, share, pattern, scope=scope, block=block)
        yield blockwise.make_result(subject, student, budget, notes=notes, judged={} if dry_run else judged)
        del student  # or it would be held beside the next one


def check(subject: Transformer | Streamed, training: Training, *, descends: int, general_needed: bool) -> None:
    """Raise `UnsupportedError` for a model that can't be scored, `InputError` for settings, and where a text lacks.

    descends: sequences of a step where a copy of the model is to be trained, which takes all of it in memory; else 0.
    """
    others = sorted(training.named.keys() - {"epochs", "batch", "lr", "warmup"})
    if others:
        raise InputError(f"training {others[0]}: d_pruner's descent has epochs, train_batch, lr, warmup and clip alone")
    if not subject.causal:
        raise UnsupportedError("d_pruner scores by the next token: give a language model, such as a Llama or a GPT-2")
    if descends and (many := distributed.count()) > descends:
        raise InputError(
            f"{many} processes share a batch of {descends}: give train_batch and samples of {many} or more"
        )
    if descends and isinstance(subject, Streamed):
        raise UnsupportedError("by=dual trains a copy of the whole model: open it in memory, or take by=general")
    if general_needed:
        raise InputError(
            "d_pruner needs open-domain texts beside the domain's: give general=FILE, a folder of texts or "
            "hub:owner/name (general_weight=0 does without)"
        )


# ----------------------------------------------------------------------------------------------------- masks


def block_width(columns: int, block: int) -> int:
    """Columns of a block of a matrix."""
    return block or max(1, -(-columns // 32))


def prune(
    student: Transformer | Streamed,
    folder: Path,
    read: Read | None,
    share: float,
    pattern: Pattern | None,
    *,
    scope: Scope = "matrix",
    block: int = 128,
) -> None:
    """Zero, in place, all weights but those of the largest scores; one block after the other."""

    def score(matrix: Matrix) -> Tensor:
        scores = matrix.weight.float().abs() if read is None else read(matrix.name)
        return scores.to(matrix.weight.device)

    if scope == "global" and pattern is None:
        blockwise.prune_globally(student, folder, score, share)
        return
    for block_matrices in blocks.walk(student, folder):
        if scope == "layer" and pattern is None:
            scores = {name: score(matrix) for name, matrix in block_matrices.items()}
            for name, mask in weights.best_of_all(scores, share).items():
                block_matrices[name].weight.mul_(mask)
            continue
        for matrix in block_matrices.values():
            columns = block_width(matrix.weight.shape[1], block)
            choose = weights.chooser(share, pattern, "matrix" if scope == "layer" else scope, block=columns)
            matrix.weight.mul_(choose(score(matrix)))


# ---------------------------------------------------------------------------------------------------- scores


def score_once(
    run: Run, name: str, key: Mapping[str, str], compute: Callable[[Path, Path], Mapping[str, float]]
) -> dict[str, object]:
    """Fill the run's folder `name` by `compute` (that folder, one for what is unfinished), once; its figures.

    Raises `InputError` where the folder was filled under another key.
    """
    beside = run.folder(f"{name}-unfinished")
    figures: dict[str, Any] = run.json(name, lambda: {**compute(run.folder(name), beside), **key})
    run.drop(f"{name}-unfinished")
    other = next((what for what, value in key.items() if figures.get(what) != value), None)
    if other is not None:
        raise InputError(f"{run.root} holds scores of another {other}: choose another folder, or overwrite it")
    return figures


def open_scores(folder: Path, layers: Sequence[str]) -> Read:
    """A reader of scores that lie in `folder`, one file per layer, mapped and not loaded."""
    opened: dict[str, Any] = {}

    def read(name: str) -> Tensor:
        index = next(index for index, path in enumerate(layers) if name.startswith(f"{path}."))
        if layers[index] not in opened:
            opened[layers[index]] = safe_open(folder / f"{index}.safetensors", framework="pt")
        tensor: Tensor = opened[layers[index]].get_tensor(name)
        return tensor

    return read


def open_earlier(root: Path, by: str, subject: Transformer | Streamed) -> Read:
    """The scores of an earlier run. Raises `InputError` where there are none, or they are another model's."""
    record = root / "work" / f"{by}.json"
    if not record.is_file():
        raise InputError(f"{root} holds no {by} scores: give the folder of an earlier run of d_pruner")
    try:
        model = json.loads(record.read_text(encoding="utf-8"))["model"]
    except (ValueError, KeyError) as error:
        raise RunError(f"{record} is damaged: score anew, without scores=...") from error
    if model != digest(subject):
        raise InputError(f"{root} holds scores of another model: score this one, without scores=...")
    return open_scores(root / "work" / by, subject.layers())


def hold_out(corpus: Corpus, seed: int) -> tuple[Corpus, dict[str, Corpus]]:
    """(what of the general text is scored by, what both models are judged by: a part held out of two texts or more)."""
    if len(corpus) < 2:
        return corpus, {}
    train, held = corpus.split(seed=seed)
    return train, {"general": held}


def scored_by(root: Path, train: Corpus) -> bool:
    """Whether it is known that an earlier run, at `root`, scored by nothing of the general text but `train`."""
    record = root / "work" / "general.json"
    try:
        return not record.is_file() or bool(json.loads(record.read_text(encoding="utf-8"))["text"] == train.digest)
    except (ValueError, KeyError):
        return False


def digest(subject: Transformer | Streamed) -> str:
    """SHA-256 of the weights that may go."""
    whole = hashlib.sha256()
    for path in subject.layers():
        with subject.resident(path):
            for name, matrix in matrices(subject.model, [path]).items():
                whole.update(name.encode() + storage.bits(matrix.weight))
    return whole.hexdigest()


def describe_descent(figures: Mapping[str, Any], name: str, samples: int, *, few: bool) -> tuple[str, ...]:
    """Notes on the descent; few: the text `name` holds no whole batches for the `samples` that were asked for."""
    notes: tuple[str, ...] = (
        f"the general term changed the domain's gradient by {figures['change']:.2g} of its norm, "
        f"over {figures['steps']:g} steps on {figures['sequences']:g} sequences",
    )
    if few:
        notes += (f"{name} holds {figures['sequences']:g} sequences, fewer than the {samples} asked for",)
    if figures["unseen"]:
        notes += (f"{figures['unseen']:g} matrices got no gradient from the domain: by magnitude, below all others",)
    return notes


def general_importance(
    subject: Transformer | Streamed,
    windows: Sequence[Mapping[str, Tensor]],
    folder: Path,
    beside: Path,
    *,
    how: GeneralPass = GeneralPass(),
) -> dict[str, float]:
    """Write G of every matrix to `folder`, one file per block, see step 1: SparseGPT's scores as it goes.

    beside: where finished blocks of the copy go that is pruned on the way.
    """
    choose = weights.chooser(how.general_share, None, "matrix")
    for block in blocks.visit(subject.copy(), windows, beside, title="general importance"):
        moments = blockwise.read_inputs(block, how.floor, diagonal=False)
        scores: dict[str, Tensor] = {}
        for names, diagonal, U in obs.factor_all(moments, how.damp):
            for name in names:
                weight, parts = block.matrices[name].weight, list[Tensor]()
                keep = partial(choose_and_note, choose, parts)
                weight.copy_(obs.prune(weight, diagonal, keep, every=128, block=128, inverse=U).weight)
                scores[name] = torch.cat(parts, 1)
        distributed.by_first(partial(storage.write, folder / f"{block.index}.safetensors", scores))
    return {"windows": float(len(windows)), "starved": float(blocks.count_starved(beside))}


def choose_and_note(choose: weights.Choose, parts: list[Tensor], scores: Tensor) -> Tensor:
    """What `choose` makes of the scores, which are kept in `parts`."""
    parts.append(scores.contiguous())
    mask: Tensor = choose(scores)
    return mask


def dual_importance(
    subject: Transformer,
    batches: Batches,
    general: Read,
    folder: Path,
    beside: Path,
    *,
    steps: int,
    every: int,
    samples: int,
    how: DualScore,
    lr: float = 0.03,
    warmup: float = 0.1,
    clip: float | None = 1.0,
    recompute: bool = False,
) -> dict[str, float]:
    """Write I of every matrix to `folder`, one file per block, see steps 2 and 3; tell what the general term changed.

    batches: see `fused.descend`; `every` of them are an epoch of `samples` sequences. how: with a weight of 0,
    `general` is not read. beside: where checkpoints go. Of several processes the first sums I up, and writes.
    """
    copy = subject.copy()
    model = copy.model.float().eval().requires_grad_(True)
    with hooks.sound(model, copy.layers()):  # a loss that is NaN would not say where from
        copy.forward(batches[0])
    if recompute:
        recompute_layers(copy)
    by_parameter: dict[str, list[Matrix]] = {}
    sums: dict[str, Tensor] = {}  # on the CPU: they are as large as the model, and are added to once per step
    for name, matrix in matrices(model, copy.layers()).items():
        by_parameter.setdefault(matrix.leaf, []).append(matrix)
        sums |= {} if distributed.index() else {name: torch.zeros(matrix.weight.shape)}
    norms = torch.zeros(2, dtype=torch.float64)  # squared, summed: of what was added to the gradients, and of these

    def shape(name: str, gradient: Tensor, rate: float) -> Tensor:
        if not how.weight or name not in by_parameter:
            return gradient
        result = gradient.float().clone(memory_format=torch.contiguous_format)
        for matrix in by_parameter[name]:
            g, G = matrix.view(gradient), general(matrix.name).to(gradient.device)
            if how.published:
                new = dual.penalise(g, G, how.weight, rate=rate, samples=samples)
            else:
                new = dual.regularise(g, G, how.weight, share=rate / lr if lr else 1.0)
            norms.add_(torch.tensor([float((new - g).square().sum()), float(g.square().sum())]))
            matrix.view(result).copy_(new)
        return result

    def look(name: str, parameter: Tensor, gradient: Tensor) -> None:
        for matrix in by_parameter.get(name, ()):
            new = dual.importance(matrix.view(parameter), matrix.view(gradient), samples, cubic=how.cubic)
            sums[matrix.name].add_(new.cpu())

    fused.descend(
        model, batches, objectives.distil(copy.forward, None, output=copy.output, task=1.0, fused=True), steps=steps,
        lr=lr, warmup=warmup, clip=clip, shape=shape, look=look, beside={**sums, "norms": norms}, checkpoint=beside,
        every=every,
    )  # fmt: skip
    unseen = distributed.by_first(partial(write_sums, subject, sums, folder))
    change = float((norms[0] / norms[1].clamp(min=1e-300)).sqrt())
    return {"change": change, "steps": float(steps), "sequences": float(samples), "unseen": float(unseen)}


def write_sums(subject: Transformer, sums: dict[str, Tensor], folder: Path) -> int:
    """Write importance summed over steps to `folder`, one file per block; how many matrices got none at all.

    These rank by magnitude, below all others: experts that no token of the domain was sent to.
    """
    unseen = 0
    for index, path in enumerate(subject.layers()):
        part = {name: total for name, total in sums.items() if name.startswith(f"{path}.")}
        for name, matrix in matrices(subject.model, [path]).items():
            if not bool(part[name].any()):
                part[name], unseen = 1e-30 * matrix.weight.float().abs().cpu(), unseen + 1
        storage.write(folder / f"{index}.safetensors", part)
    return unseen


def recompute_layers(copy: Transformer) -> None:
    """Let each layer run again in the backward pass; only the layer itself is in training mode, dropout stays off."""
    copy.model.gradient_checkpointing_enable({"use_reentrant": False})
    for path in copy.layers():
        copy.model.get_submodule(path).training = True
