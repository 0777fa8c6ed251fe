"""Cut what each line of a file holds, or each page of a folder: `secateur.prune_file`, and what it would come to."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, TypeAlias

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from secateur._utils import bars
from secateur._utils import workers as helpers
from secateur._utils.disk import atomic_write, guard, is_disk_full
from secateur.clients.chat import Ledger, Meter
from secateur.errors import DataError, InputError, RunError, SecateurError
from secateur.runs import records
from secateur.runs.backends import documents as reading
from secateur.runs.context import Job, Pruned, call_settings, estimate, explain, warn_spent
from secateur.runs.estimates import Estimate
from secateur.subjects.text import markup
from secateur.vocabulary import Budget

__all__ = ["Line", "estimate_file", "parse_line", "prune_file", "prune_row", "read_lines"]

_WRITTEN = {"pruned", "pruned_passages", "error", "told", "trace", "tokens_before", "tokens_after", "words_before",
            "words_after"}  # fmt: skip
"""What a line that comes out says of its own run; what an earlier one wrote under these names is left out."""
_WANTED = "each is to be an object with question and html, text or passages"
Line: TypeAlias = tuple[str, str]
"""Where a thing to prune stands, and its JSON."""

_STANDARD = "-"
"""The standard input or output."""
_FEW = 64
"""Lines for which other processes would not have started before this one is done."""


def prune_file(
    recipe: str,
    source: str | Path,
    out: str | Path,
    budget: str | Budget,
    *,
    question: str = "",
    graph: str | Path = "",
    trace: bool = False,
    strict: bool = False,
    overwrite: bool = False,
    processes: int | None = None,
    **options: object,
) -> tuple[int, int]:
    """Cut what each line of a JSONL file holds, or each page of a folder; returns (lines, those that failed).

    A line holds `question` and `html`, `text` or `passages`, each text or a list of texts (a passage may be a list of
    sentences), and perhaps `titles`; for recipes on a graph the question, and perhaps `topics` or `choices`, which then
    stand in for the options of that name. In its place in `out` stand its own fields, `pruned`, `pruned_passages` where
    it has passages (what stays of each), `tokens_before` and `tokens_after` (`words_...` where no tokens are counted),
    `told` where the recipe tells more, and with `trace` what became of each block. A page of a folder gives a line with
    `file` and `question`.

    A line that can't be pruned (it is no JSON, lacks its fields, or an embedder fails) keeps what it has, `pruned` is
    empty and `error` says why; with `strict` the run stops there. A process that is killed is replaced once. The same
    call goes on where an earlier one was stopped: until all is done, lines stand in `out` with `.part` at its end.

    Args:
        recipe, budget, options: as for `prune_context`. Limits on servers are those of all processes together, and of
            a run that was stopped and goes on.
        source: a .jsonl file, or a folder of .html, .htm, .txt or .md files. "-" is the standard input: that, and any
            other pipe, is read once, and where a run goes on it skips as many lines as are written.
        out: the .jsonl file to write. "-" is the standard output, of which no run goes on, and beside which there is no
            record.
        question: of every page of a folder, and of lines that have none.
        graph: what all lines ask, for recipes on a graph: a file, a folder, or the address of a SPARQL endpoint.
        processes: how many work at once; unless given, one for each core where there is much to do.

    Raises `InputError`, `DataError` as `prune_context`, and `RunError` where `out` is there already, or what stands
    beside it was made by other settings.
    """
    job, source, out = Job.of(recipe, budget, options, graph), Path(source), Path(out)
    job.check_graph(graph)
    if str(out) == _STANDARD:
        return _prune_to_stdout(job, source, question, str(graph), trace, strict, processes)
    if out.exists() and not overwrite:
        raise RunError(f"{out} is there already: give another name, or overwrite it (--overwrite)")
    lines, piped = read_lines(source, question), _is_pipe(source)
    count = None if piped else _count_lines(source, question)
    _check_all(job, graph)
    part, record = out.with_name(out.name + ".part"), out.with_name(out.name + ".part.json")
    spent = out.with_name(out.name + ".part.spent")
    digest = {} if piped else {"in_sha256": records.digest(source)}
    options_in_text = {name: repr(value) for name, value in job.options.items()}
    inputs = {"lines": count, "graph": str(graph), "source": "-" if piped else str(source.resolve()), **digest}
    how = {"recipe": recipe, "budget": str(job.budget), "question": question, "trace": trace, "strict": strict}
    settings = json.dumps({**how, **inputs, **job.servers.graph_settings, **options_in_text}, indent=1)
    with guard(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        done, failed = _resume(part, record, settings, overwrite)
        lines, todo = _skip_lines(source, lines, done)
        if not done:
            spent.unlink(missing_ok=True)
        atomic_write(record, settings)
        ledger = spent if job.servers.calls or job.servers.tokens else None
        answers = _prune_lines(job, lines, todo, str(graph), trace, strict, processes, ledger)
        with part.open("ab") as file, _bar(count, done) as advance:
            for text, bad in answers:
                file.write(text.encode())
                file.flush()
                done, failed = done + 1, failed + bad
                advance()
        total = Ledger(path=spent).total() if ledger else {}
        settings_of_file = {"in": str(source), **digest, "question": question, "trace": trace, "strict": strict}
        counts = {"lines": done, "failed": failed, **({"language_model": total} if total else {})}
        settings_of_call = call_settings(job, budget, out, [graph] if graph else [], options)
        records.write(out, {**settings_of_call, **settings_of_file}, counts)
        part.replace(out)
        record.unlink(missing_ok=True)
        spent.unlink(missing_ok=True)
    if total.get("refused"):
        warn_spent(total["calls"], total["tokens"])
    return done, failed


def _check_all(job: Job, graph: str | Path) -> None:
    """Refuse what is wrong with all lines alike, once and before any: an option, a model, a graph."""
    job.check_trial()
    if not job.reader.brings_documents:
        job.open(str(graph))


def _prune_to_stdout(
    job: Job, source: Path, question: str, graph: str, trace: bool, strict: bool, processes: int | None
) -> tuple[int, int]:
    """`prune_file` with each line written as soon as it and those before it are done, and nothing kept to go on by."""
    _check_all(job, graph)
    lines, todo = _skip_lines(source, read_lines(source, question), 0)
    done = failed = 0
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "spent" if job.servers.calls or job.servers.tokens else None
        for text, bad in _prune_lines(job, lines, todo, graph, trace, strict, processes, ledger):
            sys.stdout.buffer.write(text.encode())
            sys.stdout.buffer.flush()
            done, failed = done + 1, failed + bad
        total = Ledger(path=ledger).total() if ledger else {}
    if total.get("refused"):
        warn_spent(total["calls"], total["tokens"])
    return done, failed


def _prune_lines(
    job: Job,
    lines: Iterator[Line],
    todo: int,
    graph: str,
    trace: bool,
    strict: bool,
    processes: int | None,
    ledger: Path | None,
) -> Iterator[tuple[str, bool]]:
    """The line of each answer in their order, and whether it failed; `todo` is how many there are, `_FEW` for many."""
    plain = all(map(_is_plain, job.options.values()))
    # A model that was given as such is not sent from process to process.
    many = processes or (1 if todo < _FEW else os.cpu_count() or 1)
    many = many if todo == _FEW else max(1, min(many, todo))
    workers = job.servers.processes(many) if plain else 1
    job = replace(job, servers=job.servers.share(workers))
    return _map(partial(_prune_line, job, graph, trace, strict, ledger), lines, workers)


def estimate_file(
    recipe: str,
    source: str | Path,
    budget: str | Budget,
    *,
    question: str = "",
    graph: str | Path = "",
    few: int = 8,
    **options: object,
) -> Estimate:
    """What `prune_file` would come to, by the first `few` lines, which are cut for it; nothing is written.

    A language model that the recipe asks is asked for these. What is loaded before the first line is not timed.

    Raises as `prune_file` does.
    """
    job, source = Job.of(recipe, budget, options, graph), Path(source)
    job.check_graph(graph)
    lines = read_lines(source, question)
    first = list(islice(lines, few))
    count = len(first) + sum(1 for _ in lines)  # a pipe is read once
    if not count:
        raise _no_lines(source)
    _check_all(job, graph)

    def prune(line: Line, meter: Meter) -> Pruned:
        return prune_row(job, str(graph), parse_line(line[1]), meter, Path(line[0]))

    return estimate(job, count, [partial(prune, line) for line in first])


# ------------------------------------------------------------------------------------------------------------- lines


def read_lines(source: Path, question: str) -> Iterator[Line]:
    """(where it stands, JSON) of each thing to prune; of a folder's pages the JSON names the file."""
    if source.is_dir():
        if not question.strip():
            raise InputError(f"{source} is a folder of pages, and they hold no question: give one (--question)")
        kinds = (".html", ".htm", ".txt", ".md")
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in kinds and path.is_file())
        if not paths:
            raise DataError(f"{source} holds no page: it has none of {', '.join(kinds)}")
        for path in paths:
            row = {"file": str(path.relative_to(source)), "question": question}
            yield str(path), json.dumps(row, ensure_ascii=False)
        return
    name = _name(source)
    try:
        with nullcontext(sys.stdin.buffer) if str(source) == _STANDARD else source.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{name}, line {number}", _with_question(line.decode("utf-8", "replace"), question)
    except OSError as error:
        raise DataError(f"{name}: {error.strerror}: give a .jsonl file or a folder of pages") from error


def _is_pipe(source: Path) -> bool:
    """Whether it can be read once alone: the standard input, or what is neither file nor folder."""
    return str(source) == _STANDARD or (source.exists() and not source.is_file() and not source.is_dir())


def _count_lines(source: Path, question: str) -> int:
    """How many things there are to prune; `DataError` for none."""
    count = sum(1 for _ in read_lines(source, question))
    if not count:
        raise _no_lines(source)
    return count


def _name(source: Path) -> str:
    return "the standard input" if str(source) == _STANDARD else str(source)


def _no_lines(source: Path) -> DataError:
    return DataError(f"{_name(source)} holds no line: {_WANTED}")


def _skip_lines(source: Path, rows: Iterator[Line], done: int) -> tuple[Iterator[Line], int]:
    """The rows behind those that are done, and how many they are, where they are but few: else `_FEW`.

    Raises `DataError` where there is none at all, `RunError` where there are fewer than are done.
    """
    skipped = sum(1 for _ in islice(rows, done))
    if skipped < done:
        raise RunError(
            f"{_name(source)} holds {skipped} lines, and {done} are written already: give the same, or overwrite "
            "(--overwrite)"
        )
    first = list(islice(rows, _FEW))
    if not first and not done:
        raise _no_lines(source)
    return chain(first, rows), len(first)


def _is_plain(value: object) -> bool:
    """Whether an option goes from process to process."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | None)


def _with_question(line: str, question: str) -> str:
    """The line with `question` where it has none."""
    if not question:
        return line
    try:
        row = json.loads(line)
    except ValueError:
        return line
    return json.dumps({"question": question, **row}, ensure_ascii=False) if isinstance(row, dict) else line


def _prune_line(job: Job, graph: str, trace: bool, strict: bool, ledger: Path | None, line: Line) -> tuple[str, bool]:
    """The line of the answer, and whether it failed."""
    row: dict[str, Any] = {}
    try:
        row = parse_line(line[1])
        if "pruned" in row:  # a line that came out, not one whose own fields have such names
            row = {name: value for name, value in row.items() if name not in _WRITTEN}
        pruned = prune_row(job, graph, row, job.servers.meter(ledger), Path(line[0]))
    except Exception as error:
        if is_disk_full(error):  # no other line can be written either
            raise
        if strict:
            kind = type(error) if isinstance(error, SecateurError) else RunError
            raise kind(f"{line[0]}: {explain(error)}") from error
        return _to_json({**row, "pruned": "", "error": explain(error)}), True
    measure = "tokens" if "tokens" in pruned.after else "words"
    costs = {f"{measure}_before": int(pruned.before[measure]), f"{measure}_after": int(pruned.after[measure])}
    answer = {**row, "pruned": pruned.text, **costs}
    if reading.field_of(row) == "passages" and pruned.documents:
        answer["pruned_passages"] = pruned.documents
    if pruned.told:
        answer["told"] = pruned.told
    if trace:
        answer["trace"] = pruned.trace
    return _to_json(answer), False


def _to_json(row: Mapping[str, object]) -> str:
    """A line of JSON that can be encoded: where it holds a lone half of a surrogate pair, all but ASCII is escaped."""
    text = json.dumps(row, ensure_ascii=False)
    return (text if text == markup.whole(text) else json.dumps(row)) + "\n"


def prune_row(job: Job, graph: str, row: Mapping[str, object], meter: Meter, file: Path | None = None) -> Pruned:
    """What stays of what a row holds, or of the graph that all ask; a row of a folder's pages names its `file`."""
    if job.reader.brings_documents:
        documents, titles = reading.read_row(row, file)
    else:
        documents, titles = [job.servers.open_graph(graph)], None
    job = replace(job, options={**job.options, **reading.row_options(row, job.options)})
    return job.prune(job.reader.open_documents(documents, titles), row.get("question"), meter)


def parse_line(text: str, place: str = "this line", wanted: str = _WANTED) -> dict[str, object]:
    """The fields of a line. Raises `DataError`, naming its place and what is wanted, for what is no object of JSON."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is no JSON: {wanted}") from error
    if not isinstance(row, dict):
        raise DataError(f"{place} is a {type(row).__name__}: {wanted}")
    return row


def _resume(part: Path, record: Path, settings: str, overwrite: bool) -> tuple[int, int]:
    """(lines that are done, those of them that failed); what stands behind the last whole line is taken back."""
    if overwrite or not part.exists():
        part.unlink(missing_ok=True)
        return 0, 0
    if not record.exists() or json.loads(record.read_text(encoding="utf-8")) != json.loads(settings):
        raise RunError(f"{part} was made by other settings: give another name, or overwrite it (--overwrite)")
    done = failed = whole = 0
    with part.open("rb+") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            row = json.loads(line)
            whole, done = whole + len(line), done + 1
            failed += row.get("pruned") == "" and "error" in row
        lines.truncate(whole)
    return done, failed


def _map(work: Callable[[Line], tuple[str, bool]], rows: Iterable[Line], workers: int) -> Iterator[tuple[str, bool]]:
    """The answers in the order of the rows; a few rows ahead are in work, so that a file need not fit into memory."""
    if workers == 1:
        yield from map(work, rows)
        return
    rows, waiting = iter(rows), list[Line]()
    for last in (False, True):
        try:
            yield from _map_processes(work, rows, waiting, workers)
            return
        except BrokenProcessPool as error:
            if last:
                raise RunError(
                    "a helping process was killed, and so was another in its place, perhaps for want of memory: the "
                    "same call goes on where this one stopped, and fewer processes need less"
                ) from error


def _map_processes(
    work: Callable[[Line], tuple[str, bool]], rows: Iterator[Line], waiting: list[Line], workers: int
) -> Iterator[tuple[str, bool]]:
    """The answers of other processes. In `waiting` stand rows that have none yet: those that are begun with, and added.

    Raises `BrokenProcessPool` where one of the processes was killed.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    start = helpers.prepare_process, (threads, dict(os.environ))
    with ProcessPoolExecutor(workers, helpers.process_context(), *start) as pool:
        futures = [pool.submit(work, row) for row in waiting]
        try:
            for row in chain(rows, repeat(None)):
                if row is not None:
                    waiting.append(row)
                    futures.append(pool.submit(work, row))
                elif not futures:
                    return
                if row is None or len(futures) > 4 * workers:
                    answer = futures[0].result()
                    del futures[0], waiting[0]
                    yield answer
        finally:
            for future in futures:
                future.cancel()


@contextmanager
def _bar(count: int | None, done: int) -> Iterator[Callable[[], None]]:
    """A bar where somebody sees it; what it yields, called, says that one more is done."""
    columns = (TextColumn("pruning"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with bars.make_bar(*columns, transient=True) as progress:
        task = progress.add_task("", total=count, completed=done)
        yield partial(progress.advance, task)
