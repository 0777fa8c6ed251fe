"""How many of 200 answers are left at equal tokens: htmlrag beside chunks, LangChain's splitter, and cutting off.

    python benchmarks/answers.py                      # writes docs/evidence/benchmarks/answers.*
    python benchmarks/answers.py --resume             # the same, where an earlier run on this commit was stopped
    python benchmarks/answers.py --ways "htmlrag, both"       # these anew, the others stay as they were
    python benchmarks/answers.py --corpora plain --most 12    # a quick look, writes nothing

Questions were written by hand beside the passage that answers each, and stand in `questions/`: on manuals (git's and
Python's: options, tables and sentences), on plain text (Brown) and on Markdown (npm's manual). A question reads the
page that answers it among four others of its corpus. `secateur study rag` compares: chunks of 50, 100
and 200 words with and without headings and LangChain's splitter, by BM25 and by all-MiniLM-L6-v2, and the first words;
a question counts where the whole passage is left. htmlrag ranks by BM25, by the embedder, or by both.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track

from secateur._utils.disk import atomic_write
from secateur.measure import statistics
from secateur.measure.environment import describe
from secateur.reports.sheet import percent
from secateur.runs import keywords, questions
from secateur.runs.questions import Questions
from secateur.studies import rag
from secateur.vocabulary import Figure
from support import peers
from support.data import packages

CORPORA = ("manuals", "plain", "markdown")
BUDGETS = ("tokens=256", "tokens=512", "tokens=1024")
WAYS: Mapping[str, Mapping[str, object]] = {
    "htmlrag, BM25": {},
    "htmlrag, embedder": {"embedder": True},
    "htmlrag, both": {"embedder": True, "settings": ["htmlrag.hybrid=true"]},
    "htmlrag, embedder that reads all": {"embedder": True, "settings": ["htmlrag.shortlist=0"]},
    "htmlrag, both, all read": {"embedder": True, "settings": ["htmlrag.hybrid=true", "htmlrag.shortlist=0"]},
}
"""Ours: the lead is told of the first, the recipe as it is without options."""
RIVALS = "htmlrag, embedder"
"""The run with which the rivals run, since it has the embedder too."""
OTHERS = 4
"""Pages that are read besides the one with the answer."""
ROOT = Path(__file__).parent / "questions"
OUT = peers.ROOT / "docs" / "evidence" / "benchmarks"
Kept = dict[str, dict[str, list[bool]]]
"""Pipeline -> budget -> which questions kept their answer."""


def read(corpus: str, folder: Path, most: int = 0) -> Questions:
    """The questions of a corpus, or `most` of them, as the study reads them; what is read is written into `folder`."""
    asked, page = dict[str, list[tuple[str, str]]](), ""
    for line in (ROOT / f"{corpus}.txt").read_text("utf-8").splitlines():
        question, bar, answer = line.partition(" | ")
        page = page if bar else line
        asked.setdefault(page, [])
        asked[page] += [(question, answer)] if bar else []
    rows, draw = list[str](), random.Random(0)
    for page, pairs in asked.items():
        others = [other for other in asked if other != page and other.split("/")[0] == page.split("/")[0]]
        chosen = [page, *draw.sample(others, OTHERS)]
        draw.shuffle(chosen)
        for question, answer in pairs:
            row = {"question": question, "answers": [answer], "files": [str(find(name, folder)) for name in chosen]}
            rows.append(json.dumps(row))
    file = folder / f"{corpus}.jsonl"
    file.write_text("\n".join(draw.sample(rows, most) if most else rows) + "\n", encoding="utf-8")
    return questions.read(file)


def find(page: str, folder: Path) -> Path:
    """The file of "git/git-add", "python/struct", "npm/commands/npm-audit" or "brown/21"."""
    source, _, name = page.partition("/")
    if source == "git":
        return packages.git_manual() / f"{name}.html"
    if source == "python":
        return packages.manual() / "library" / f"{name}.html"
    if source == "npm":
        return packages.npm_manual() / f"{name}.md"
    file = folder / f"brown-{name}.txt"
    if not file.is_file():
        sentences = packages.brown_documents()[int(name)][1]
        parts = [" ".join(sentences[start : start + 5]) for start in range(0, len(sentences), 5)]
        file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return file


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", nargs="+", choices=CORPORA, default=list(CORPORA))
    parser.add_argument("--most", type=int, default=0, help="questions of each corpus; all of them if not given")
    parser.add_argument("--resume", action="store_true", help="what the file has of this commit is not run again")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=[], help="of ours, anew")
    options = parser.parse_args(given)
    machine = describe()
    whole = not options.most and tuple(options.corpora) == CORPORA
    record, commits = (
        read_record(machine, bool(options.ways)) if whole and (options.resume or options.ways) else ({}, {})
    )
    text = ""
    for corpus in options.corpora:
        kept = record.setdefault(corpus, {})
        for way in options.ways or WAYS:
            if options.ways or way not in kept:
                kept |= compare(corpus, way, options.most, rivals=way == RIVALS and not options.ways)
                commits |= {name: str(machine.get("commit")) for name in ((way,) if options.ways else (way, "rivals"))}
            text = write_table(record, machine, commits)
            if whole:  # after each part, so that what was found stays where the run is stopped
                told = json.dumps({**record, "machine": machine, "commits": commits}, indent=1)
                atomic_write(OUT / "answers.json", told + "\n")
                atomic_write(OUT / "answers.md", text + "\n")
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def read_record(machine: Mapping[str, object], any_commit: bool) -> tuple[dict[str, Kept], dict[str, str]]:
    """What an earlier run has found, on the same commit or on any; and way -> the commit that it is of."""
    file = OUT / "answers.json"
    found = json.loads(file.read_text("utf-8")) if file.is_file() else {"machine": {}}
    commit, commits = found.pop("machine").get("commit"), found.pop("commits", {})
    if not any_commit and commit != machine.get("commit"):
        return {}, {}
    return found, commits


def compare(corpus: str, way: str, most: int, *, rivals: bool) -> Kept:
    """What one way of ours keeps of a corpus; and the rivals, if asked for."""
    how, model, kept = WAYS[way], str(packages.minilm()), Kept()
    chunks: dict[str, object] = {"words": (50, 100, 200), "letters": 600} if rivals else {"words": ()}
    more = {"tokenizer": model, "budgets": BUDGETS, **chunks, **how, "embedder": model if how.get("embedder") else ""}
    watch = partial(track, description=f"{corpus}, {way}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = keywords.call(rag.rag, None, read(corpus, folder, most), folder / way, watch, **more)
    for pipeline, by in found.items.items():
        if failed := [item["error"] for items in by.values() for item in items if "error" in item]:
            raise SystemExit(f"{pipeline} failed {len(failed)} times: {failed[0]}")
        if pipeline != rag.WHOLE and (pipeline == "htmlrag" or rivals):
            called = way if pipeline == "htmlrag" else pipeline
            kept[called] = {budget: [bool(item["kept"]) for item in by[budget]] for budget in BUDGETS}
    return kept


def write_table(record: Mapping[str, Kept], machine: Mapping[str, object], commits: Mapping[str, str]) -> str:
    """The page: a table for each corpus of which something is known."""
    lines, many = list[str](), 0
    for corpus, kept in record.items():
        count = len(next(iter(next(iter(kept.values())).values())))
        lines += [f"## {corpus.capitalize()}: {count} questions", "", *rows_of(kept), ""]
        many += count
    missing = [f"{corpus}: {way}" for corpus in CORPORA for way in WAYS if way not in record.get(corpus, {})]
    return "\n".join(
        [
            "# Answers kept", "",
            f"{many} questions on five pages each, all-MiniLM-L6-v2 and its tokens; % of the questions whose whole",
            "answer is left, with Wilson's interval; then htmlrag as it is (BM25) beside the rival that kept the most.",
            "", *([f"Not run yet: {'; '.join(missing)}.", ""] if missing else []), *lines,
            f"{machine.get('cpu')}; commits: {', '.join(f'{way} {commit}' for way, commit in commits.items())}.",
        ]
    )  # fmt: skip


def rows_of(kept: Kept) -> list[str]:
    """Lines of a table of what each pipeline keeps, the lead of ours at last where rivals are known."""
    rows = [f"| | {' | '.join(BUDGETS)} |", "| --- | ---: | ---: | ---: |"]
    for pipeline, by in kept.items():
        rows.append(f"| {pipeline} | {' | '.join(percent(share(by[budget])) for budget in BUDGETS)} |")
    ours, rivals = next(iter(WAYS)), [name for name in kept if name not in WAYS]
    leads = list[str]()
    for budget in BUDGETS if rivals else ():
        rival = max(rivals, key=lambda name: sum(kept[name][budget]))
        pair = ([float(one) for one in kept[name][budget]] for name in (ours, rival))
        leads.append(f"{percent(statistics.paired_difference(*pair), signed=True)} over {rival}")
    return [*rows, f"| **ahead of the best rival, points** | {' | '.join(leads)} |"] if leads else rows


def share(kept: Sequence[bool]) -> Figure:
    return statistics.proportion(sum(kept), len(kept))


if __name__ == "__main__":
    main()
