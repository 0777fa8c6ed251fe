"""A training set, cut to a budget: from data and a score to index files that say which examples stay.

Scores of a training set are computed once and kept; another budget in the same folder needs none again.
"""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur._utils import plugins
from secateur._utils.rundir import Run
from secateur.data import examples, image_tables, images, ray_data, texts
from secateur.data.examples import Examples
from secateur.data.images import Images
from secateur.data.shelf import nearest
from secateur.data.tables import Table
from secateur.data.texts import Corpus
from secateur.errors import BudgetError, DataError, InputError
from secateur.measure.environment import describe as describe_machine
from secateur.methods import example_scores
from secateur.recover.training import loop, rehearsal
from secateur.reports import evidence
from secateur.retrieval import encoders
from secateur.runs import backends, configs, keywords
from secateur.runs.backends import Data
from secateur.runs.backends.dataset import Rows, holds_texts, is_stream, read_rows
from secateur.runs.backends.language import Language
from secateur.runs.backends.network import Network
from secateur.runs.executor import hash_files, open_run, parse_budgets
from secateur.score import difficulty, random
from secateur.select import balance, ranking
from secateur.subjects import ExampleSet, Traced, Transformer
from secateur.subjects.dataset.examples import INDEX
from secateur.subjects.network.recording import Example
from secateur.vocabulary import Budget, Evidence, Result, Selection, Training

__all__ = ["SCORES", "configured", "prune_data"]

Model: TypeAlias = str | Path | nn.Module | Transformer

SCORES = ("random", "length", *difficulty.NEEDS)
"""What can be asked for by name; those of `difficulty` look at a model in training."""
_LR = {"network": 1e-3, "text": 5e-5}


def prune_data(
    data: Data,
    budget: str | Budget | Sequence[str | Budget],
    out: str | Path,
    *,
    score: str = "random",
    model: Model | None = None,
    balanced: bool | None = None,
    deduplicate: Literal["", "exact", "normalised"] = "",
    text: str = "text",
    label: str = "label",
    transform: object = None,
    size: int | str | None = None,
    workers: int | None = None,
    tokenizer: str | Path | None = None,
    runs: int = 3,
    epochs: float = 10.0,
    lr: float | None = None,
    batch: int = 32,
    length: int = 128,
    seed: int = 0,
    ray: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
) -> list[Result]:
    """Cut a training set to each budget, and leave an index file for each in `out`; the data stays as it is.

    `Result.subject` is an `ExampleSet`: its `kept` are the places that stay, its `data` the examples. Texts are never
    all in memory unless they were given so: what reads them reads them from the disk, where those that come from a path
    or a stream stand in a file without a name, near `out`, for as long as the results live. A larger budget
    keeps all that a smaller one keeps. The same call again resumes: a run of scoring that is done is not done twice,
    and further budgets take the scores that are there.

    Args:
        data: texts as for `secateur.run` (also an iterable that is passed over once), arrays and folders of images, a
            `datasets.Dataset`, a folder of `save_to_disk`, a .csv file, a .parquet or .jsonl file of rows without
            texts, a `ray.data.Dataset`; or an earlier index, as its folder or as an `ExampleSet`: what it keeps is cut
            further.
        budget: how much may stay: examples=30%, bytes=10MB (of images their files), words=1000000, tokens=50%; one or
            several.
        out: the run directory; the index for a budget stands in a folder of that name.
        score: which examples are worth most. "random"; "length" (of texts: most words first); what a model in training
            made of them: "el2n", "grand" and "forgetting" (hardest first), "memorisation" (first what no other example
            tells about), "moderate" (neither hard nor easy), "herding" (most typical first); or "file.py:function",
            from the data (of texts, a `Corpus`) to one number for each example.
        model: a classifier: for arrays a module, or the name of a function that builds one ("file.py:build"), which is
            trained from new weights in each run; for texts a folder or Hub id, trained from its own weights.
        balanced: keep the same share of every class; by default where the data has classes.
        deduplicate: first drop examples that repeat an earlier one: exact, or normalised for texts of equal words.
        text, label: columns of tables, and of an .npz file the array of classes; label="" for no classes.
        transform: how images become inputs of a model: imagenet, cifar, none, file.py:function; see `secateur.run`.
        size: of these inputs: 224, or "224x160" (height x width).
        workers: processes that read images ahead; as many as cores, up to 8, unless given.
        tokenizer: whose tokens are counted, for budgets in tokens.
        runs: trainings that the score is averaged over.
        epochs: of each of them; 0 takes the model as it is.
        lr: their peak learning rate; 1e-3 for networks and 5e-5 for models of texts unless given.
        batch: examples per step.
        length: tokens of a text that a model reads.
        seed: seed of the random generators.
        ray: pass over texts at a path with Ray Data: on all cores, or on the cluster that RAY_ADDRESS names. A model
            reads them here.
        dry_run: say what would stay; nothing is written.
        overwrite: start anew where `out` holds another run.

    Raises:
        InputError: an unknown score, a model that is no classifier, data without classes where they are needed.
        DataError: data that can't be read, or labels out of range.
        InfeasibleError: a budget that leaves nothing, or nothing of a class.
        RunError: `out` is in use, or holds a run of other data or settings.
    """
    budgets = parse_budgets(budget, "examples=30%")
    _check(score, model, runs, epochs)
    keywords.check_seed(seed)
    counted = {"tokens": encoders.counter(str(tokenizer))} if tokenizer is not None else {}
    # A function of one's own is given texts, too, or the whole table.
    spoken = ray or ray_data.is_dataset(data) or is_stream(data) or holds_texts(data, text)
    held = (model is not None and not _is_network(model)) or (":" in score and spoken)
    shelf = Path(tempfile.gettempdir()) if dry_run else nearest(out)
    source = read_rows(data, held=held, shelf=shelf, text=text, label=label, counts=counted, ray=ray)
    pictured = transform is not None or size is not None or workers is not None
    seen = _read_pictures(source, label) if model is not None or pictured else source
    if pictured:
        if not isinstance(seen, Examples):
            raise InputError(f"{source.name} holds no images: leave transform, size and workers out")
        seen = examples.with_transform(seen, transform, size, workers)
        source = seen if isinstance(source, Examples) else source
    _check_tokens(budgets, {*source.costs(), *counted})
    whole = ExampleSet(source)
    _check_classes(source, model is not None, balanced)
    fair = whole.labels is not None if balanced is None else balanced
    if fair and whole.labels is None:
        raise InputError(f"{source.name} has no classes to balance: leave it out, or name the column with --label")
    training: dict[str, Any] = {"runs": runs, "epochs": epochs, "lr": lr, "batch": batch, "length": length}
    hashes = hash_files(prune_data, {"score": score, "model": model, "tokenizer": tokenizer}, out)
    settings = {
        "command": "prune-data", "score": score, "balanced": fair, "deduplicate": deduplicate, "seed": seed,
        "data_sha256": source.digest,
        **({} if model is None or seen is source else {"seen_sha256": seen.digest}),
        **({} if model is None else {"model": backends.name_source(model), **training}),
        **hashes,
    }  # fmt: skip
    declared = {"transform": transform, "size": size, "workers": workers}
    read = {
        **{
            name: value if isinstance(value, int) else str(value)
            for name, value in declared.items()
            if value is not None
        },
        "text": text,
        "label": label,
        "ray": ray,
        **({} if tokenizer is None else {"tokenizer": str(tokenizer)}),
    }
    about = {
        "data": str(data) if isinstance(data, str | Path) else source.name,
        "budget": [str(each) for each in budgets],
        **read,
    }
    folder = tempfile.TemporaryDirectory() if dry_run else nullcontext(str(out))
    with folder as place, open_run(place, settings, about, overwrite=overwrite, defaults=hashes) as run:
        whole = whole.with_costs(**{m: count for m, count in counted.items() if m not in source.costs()})
        whole = whole.with_scores(score, _scores(score, whole, model, run, seed, training, seen))
        distinct = ~whole.repeats(normalised=deduplicate == "normalised")
        results = [_cut(whole, score, each, fair, distinct, bool(deduplicate)) for each in budgets]
        if not dry_run:
            for result in results:
                run.publish(cast(ExampleSet, result.subject).save, result.name)
            known = {**about, "versions": describe_machine(), **settings}
            rows = {row.target: row for row in _earlier_rows(run.root)}
            rows |= {result.name: _evidence(result, known) for result in results}
            evidence.write(run.root / "evidence.json", list(rows.values()))
    return results


def configured(path: str | Path, given: Mapping[str, object] | None = None) -> dict[str, Any]:
    """What to call `prune_data` with: the settings in a YAML file, such as a run.yaml, where `given` says nothing else.

    Raises `InputError` where the file, a key in it or a value can't be used.
    """
    return configs.options(prune_data, configs.read(path, "prune-data", prune_data, given))


def _read_pictures(source: Rows, label: str) -> Rows:
    """What a network sees of a table of images; anything else as it is."""
    if not isinstance(source, Table) or image_tables.find_images(source.rows.features) is None:
        return source
    return examples.read(source.rows, label=label)


def _is_network(model: Model) -> bool:
    """Whether it reads arrays, and no texts: a module, or the name of a function that builds one."""
    return isinstance(model, nn.Module) or (isinstance(model, str | Path) and plugins.names_function(str(model)))


def _check(score: str, model: object, runs: int, epochs: float) -> None:
    if score not in SCORES and ":" not in score:
        near = difflib.get_close_matches(score, SCORES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"give one of {', '.join(SCORES)}, or file.py:function"
        raise InputError(f"no score of examples is called {score!r}: {hint}")
    if score in difficulty.NEEDS and model is None:
        raise InputError(f"score {score!r} looks at a model in training: give one, such as --model net.py:build")
    if score not in difficulty.NEEDS and model is not None:
        raise InputError(f"score {score!r} asks no model: leave it out, or take one of {', '.join(difficulty.NEEDS)}")
    if runs < 1 or not 0 <= epochs < np.inf:
        raise InputError(f"runs={runs}, epochs={epochs}: give at least one run of 0 epochs or more")
    example_scores.check_scoring(score, runs, epochs)


def _check_tokens(budgets: Sequence[Budget], measures: Collection[str]) -> None:
    """Refuse budgets in tokens of texts that nothing counts."""
    for budget in budgets:
        if "tokens" in budget and "tokens" not in measures and "words" in measures:
            raise BudgetError(f"budget {budget.brief()}: give a tokenizer to count by (--tokenizer), or limit words")


def _check_classes(source: Rows, wanted: bool, balanced: bool | None) -> None:
    """Refuse labels that are no classes where a score wants some, or where classes would have been balanced."""
    flaw = "" if isinstance(source, Examples) else source.flaw
    if flaw and (wanted or balanced is not False):
        raise DataError(flaw if wanted or balanced else f"{flaw}, or go by no classes: --label ''")


def _earlier_rows(where: Path) -> list[Evidence]:
    """What earlier calls said of budgets whose indices are still there."""
    if not (where / "evidence.json").is_file():
        return []
    return [row for row in evidence.read(where) if (where / row.target / INDEX).is_file()]


def _evidence(result: Result, settings: Mapping[str, object]) -> Evidence:
    row = Evidence("prune-data", result.name, predicted=result.predicted, cut=result.cut, settings=settings,
                   environment=describe_machine())  # fmt: skip
    return replace(row, verdict=evidence.judge(row))


# ----------------------------------------------------------------------------------------------------------- scoring


def _scores(
    score: str, whole: ExampleSet, model: Model | None, run: Run, seed: int, training: Mapping[str, Any], seen: Rows
) -> NDArray[np.float32]:
    """[N], computed the first time and read from the run afterwards; a training at a time. seen: by the model."""
    if score == "random":
        return np.asarray(random.scores(whole.units("examples"), seed)["examples"].numpy())
    if score == "length":
        words = whole.source.costs().get("words")
        if words is None and isinstance(whole.source, Table):
            raise InputError(f"{whole.source.name} has no column {whole.source.text!r} whose words could be counted: "
                             "name it with --text")  # fmt: skip
        if words is None:
            raise InputError(f"{whole.source.name} holds no texts: examples of one size have no length to go by")
        return words.astype(np.float32)
    if model is None:
        return np.asarray(run.tensors("scores", lambda: {"own": _own_scores(score, whole)})["own"].numpy())
    if whole.labels is None:
        raise InputError(f"{whole.source.name} has no classes, by which {score} goes: name the column with --label")
    scores = []
    for number in range(training["runs"]):

        def one(number: int = number) -> dict[str, Tensor]:
            return _train_and_score(seen, model, score, seed, number, training)

        scores.append(run.tensors(f"scores-{number}", one)["score"])
    return np.asarray(difficulty.average(scores).numpy())


def _own_scores(score: str, whole: ExampleSet) -> Tensor:
    given = plugins.function(score)(whole.source)
    try:
        values = torch.as_tensor(given, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(given).__name__
        raise InputError(f"{score} gave a {kind} for the scores: give one finite number for each example") from error
    if values.shape != (len(whole),) or not bool(torch.isfinite(values).all()):
        raise InputError(f"{score} gave scores of shape {tuple(values.shape)} for {len(whole)} examples: give one "
                         "finite number for each")  # fmt: skip
    return values


def _train_and_score(
    data: Any, model: Model, score: str, seed: int, number: int, training: Mapping[str, Any]
) -> dict[str, Tensor]:
    """{"score": [N]} of the `number`-th training: of a network from new weights, of a model of texts from its own."""
    if isinstance(data, Examples):
        if isinstance(model, Transformer) or (isinstance(model, str | Path) and ":" not in str(model)):
            raise InputError(f"{data.name} holds arrays: give a network for them, such as --model net.py:build")
        built = model if isinstance(model, nn.Module) else plugins.network(str(model))[0]
        if isinstance(data.inputs, Images):
            data = replace(data, inputs=images.declare(data.inputs, built, name=data.name))
        subject = Traced(built, Example.of(data.inputs[:1]))
        try:
            data = Network().fit_data(data, subject)
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise InputError(
                f"{backends.name_source(model)} can't take {data.name}: {first}; build it for its inputs"
            ) from error
        ask = partial(example_scores.ask_logits, subject.inputs)
        how = Training(batch=training["batch"], lr=training["lr"] or _LR["network"])
        with loop.place_for_training(built):  # where it is looked at, too
            return example_scores.score_by_training(
                built, data, ask, score, how, epochs=training["epochs"], seed=seed, number=number
            )
    if isinstance(data, Table) and data.texts is None:
        raise DataError(f"{data.name} has no column {data.text!r} for a model to read: name it with --text")
    if _is_network(model):
        raise InputError(f"{data.name} holds texts: give the folder or Hub id of a model that classifies texts")
    if not isinstance(data, Corpus):
        raise InputError(f"{data.name} is no text that a model could read, but a survey: give the data itself")
    reader = Language().open(model).cut(Selection({}))[0]
    if reader.output != "logits" or reader.causal:
        raise InputError(f"{type(reader.model).__name__} gives no classes, by which examples are scored: give a model "
                         "that classifies texts")  # fmt: skip
    corpus = Language().fit_data(data, reader)
    needs = difficulty.NEEDS[score]
    inside = rehearsal.half(len(corpus), seed=seed, number=number) if "inside" in needs else None
    seen = corpus if inside is None else corpus.take(inside.nonzero().flatten().tolist())
    tokens = {"batch": min(training["batch"], len(seen)), "length": training["length"]}
    feed = (
        texts.batches(seen, reader.tokenizer, packed=False, seed=seed + number, **tokens) if training["epochs"] else ()
    )
    with loop.place_for_training(reader.model):
        record = rehearsal.rehearse(
            reader.model, lambda part: reader.forward(part).prediction, feed,
            lambda: texts.in_order(corpus, reader.tokenizer, **tokens),
            epochs=training["epochs"], lr=training["lr"] or _LR["text"], seed=seed + number, needs=needs,
        )  # fmt: skip
    return {"score": difficulty.by_name(score, [record if inside is None else record | {"inside": inside}])}


# ----------------------------------------------------------------------------------------------------------- cutting


def _cut(whole: ExampleSet, score: str, budget: Budget, fair: bool, distinct: NDArray[np.bool_], once: bool) -> Result:
    """The best of the examples within a share of the whole; with `once`, of those that repeat no other."""
    notes = []
    if not distinct.all():
        many = f"{int((~distinct).sum())} examples repeat an earlier one"
        notes.append(f"{many}: dropped" if once else f"{many}: --deduplicate drops them first")
    units = whole.units("examples")
    limits = Budget.of(budget.absolute(units.cost()))
    left = whole.cut(Selection({"examples": distinct}))[0] if once else whole
    own, column = left.units("examples"), left.scores[score][left.kept]
    if fair:
        chosen = balance.by_budget(own, "examples", column, limits, left.labels, whole.source.classes)
    else:
        chosen = ranking.by_budget(own, {"examples": column}, limits)
    keep = np.isin(whole.kept, left.kept[np.asarray(chosen.keep["examples"], bool)])
    smaller, cut = whole.cut(Selection({"examples": keep}))
    return Result(str(budget), smaller, cut, units.cost({"examples": keep}), notes=tuple(notes))
