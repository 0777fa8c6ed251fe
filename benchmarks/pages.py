"""Pages of Python's manual, cleaned and cut by secateur and by the published package htmlrag 0.1.1: time and recall.

    python benchmarks/pages.py                          # writes docs/evidence/benchmarks/pages.*
    python benchmarks/pages.py --pages 20 --groups 1 --more 1    # a quick look, writes nothing

Time: cleaning and block tree of each page on its own, best of three, one thread. Recall: whether the answer is in
what is left of five pages, under four budgets, with the same sentence encoder and its tokens; the questions are made as
those of the claims are (claims/_lab/pages.py). The package works in an environment of its own, with blocks of 256
words, which its authors advise, and with blocks of 32, where it keeps more. It takes a minute for a question: it is
asked the first ones only, and all three are compared on these.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from support import memory, peers
from support.memory import MIB

PEER = ("htmlrag", ["htmlrag==0.1.1", "psutil"])
SIZES = (256, 32)


# --------------------------------------------------------------------------------------------- in the child processes


def timed(job: dict[str, Any], work: Any) -> dict[str, Any]:
    """Seconds of `work` on each page, best of three, and the highest MiB above what was loaded before."""
    pages = [Path(page).read_text("utf-8") for page in job["timed"]]
    work(pages[0])
    before = memory.resident()
    memory.reset()
    seconds = []
    for page in pages:
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            work(page)
            best = min(best, time.perf_counter() - began)
        seconds.append(best)
    return {"seconds": seconds, "above_mib": (memory.highest() - before) / MIB}


def ours(job: dict[str, Any]) -> dict[str, Any]:
    from secateur._utils.rundir import Transient
    from secateur.recipes.context.htmlrag import htmlrag
    from secateur.retrieval import encoders
    from secateur.subjects import open_page
    from secateur.vocabulary import Budget

    if not job["asked"]:
        return timed(job, open_page)
    sys.path.append(str(peers.ROOT))
    from claims._lab import pages

    embed, outputs = pages.CachedEmbedder(encoders.encoder(job["encoder"])), []
    count = encoders.counter(job["encoder"])
    budgets = [Budget.parse(f"tokens={limit}") for limit in job["budgets"]]
    for row in job["asked"]:
        page = open_page([Path(path) for path in row["pages"]], numbered=False)
        made = htmlrag(page, row["question"], budgets, Transient(), embedder=embed, tokenizer=job["encoder"])
        asked = pages.Question(row["question"], row["gold"], "", Path(), tuple(map(Path, row["pages"])))
        outputs.append(
            {
                "secateur": [result.subject.html() for result in made],
                "text in chunks of 100 words": [
                    pages.best_chunks(asked, limit, embed, count) for limit in job["budgets"]
                ],
            }
        )
    return {"outputs": outputs}


def package(job: dict[str, Any]) -> dict[str, Any]:
    from htmlrag import EmbedHTMLPruner, build_block_tree, clean_html
    from transformers import AutoTokenizer

    if not job["asked"]:
        return timed(job, lambda page: build_block_tree(clean_html(page), max_node_words=256))
    pruner = EmbedHTMLPruner(embed_model=job["encoder"])
    tokenizer, outputs, failures = AutoTokenizer.from_pretrained(job["encoder"]), [], 0
    for number, row in enumerate(job["asked"], start=1):
        print(f"question {number} of {len(job['asked'])}", file=sys.stderr)
        html = "\n".join(clean_html(Path(path).read_text("utf-8")) for path in row["pages"])
        made: dict[str, list[str]] = {}
        for size in job["sizes"]:
            name = f"htmlrag 0.1.1, blocks of {size} words"
            blocks, tree = build_block_tree(html, max_node_words=size)
            ranks = pruner.calculate_block_rankings(row["question"], tree, blocks)
            made[name] = []
            for limit in job["budgets"]:
                try:
                    made[name].append(pruner.prune_HTML(tree, blocks, ranks, tokenizer, limit))
                except (AssertionError, IndexError, AttributeError):
                    failures += 1
                    made[name].append("")
        outputs.append(made)
    return {"outputs": outputs, "failures": failures}


# ---------------------------------------------------------------------------------------------------- the parent


def child(name: str, python: str, job: Path, folder: Path) -> dict[str, Any]:
    print(f"{name} ...", file=sys.stderr)
    out = folder / f"{name}.json"
    subprocess.run([python, __file__, "--child", name, "--job", str(job), "--out", str(out)], check=True)
    return dict(json.loads(out.read_text()))


def rows(found: dict[str, Any], job: dict[str, Any]) -> Iterator[str]:
    heads = " | ".join(f"{limit:,}" for limit in job["budgets"])
    yield f"| recall under a budget of tokens | questions | {heads} | over budget |"
    yield "| --- |" + " ---: |" * (len(job["budgets"]) + 2)
    for few in (True, False):
        for name, row in found["recall few" if few else "recall"].items():
            values = " | ".join(f"{value:.2f}" for value in row)
            many = found["few"] if few else len(job["asked"])
            yield f"| {name} | {many} | {values} | {found['over'][name]} |"
    yield ""
    yield "| cleaning and block tree | median, ms | MiB above the libraries |"
    yield "| --- | ---: | ---: |"
    for name, row in found["time"].items():
        yield f"| {name} | {1e3 * row['median']:.2f} | {row['above_mib']:,.0f} |"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=200, help="pages that are timed")
    parser.add_argument("--groups", type=int, default=4, help="groups of three questions on the same pages")
    parser.add_argument("--more", type=int, default=20, help="further groups, which the package is not asked")
    for hidden in ("--child", "--job", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.child:
        job = json.loads(Path(options.job).read_text())
        work = ours if options.child == "secateur" else package
        Path(options.out).write_text(json.dumps(work(job)))
        return
    sys.path.append(str(peers.ROOT))
    from claims._lab import pages
    from secateur.measure.environment import describe
    from secateur.retrieval import encoders
    from support.data import packages

    python, problem = peers.environment(*PEER)
    if problem:
        raise SystemExit(f"htmlrag: {problem}")
    asked = pages.draw_questions(3, groups=options.groups + options.more)
    few, library = 3 * options.groups, pages.library()
    job = {
        "encoder": str(packages.minilm()),
        "budgets": pages.BUDGETS,
        "sizes": SIZES,
        "timed": [str(library[i * len(library) // options.pages]) for i in range(options.pages)],
        "asked": [{"question": a.question, "gold": a.gold, "pages": list(map(str, a.pages))} for a in asked],
    }
    made: dict[str, dict[str, Any]] = {"secateur": {}, "htmlrag": {}}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "job.json")
        for part in ({"asked": []}, {}):  # times first, both within a minute or two; recall takes no notice of others
            place.write_text(json.dumps(job | part))
            for name, run in (("secateur", sys.executable), ("htmlrag", python)):
                if name == "htmlrag" and not part:
                    place.write_text(json.dumps(job | {"asked": job["asked"][:few]}))
                made[name] |= child(name, run, place, Path(folder))
    count = encoders.counter(job["encoder"])
    found: dict[str, Any] = {"few": few, "recall few": {}, "recall": {}, "over": {}, "time": {}}
    found["failures"] = made["htmlrag"]["failures"]
    for one in made.values():
        for name in one["outputs"][0]:
            texts = [row[name] for row in one["outputs"]]
            held = [[pages.has_answer(a, text) for text in row] for a, row in zip(asked, texts, strict=False)]
            found["recall few"][name] = [statistics.mean(column) for column in zip(*held[:few], strict=True)]
            if len(held) == len(asked):
                found["recall"][name] = [statistics.mean(column) for column in zip(*held, strict=True)]
            found["over"][name] = sum(
                size > limit for row in texts for size, limit in zip(count(row), job["budgets"], strict=True)
            )
    for name, one in made.items():
        found["time"][name] = {"median": statistics.median(one["seconds"]), "above_mib": one["above_mib"]}
    ratios = sorted(b / a for a, b in zip(made["secateur"]["seconds"], made["htmlrag"]["seconds"], strict=True))
    low, high = ratios[len(ratios) // 20], ratios[-1 - len(ratios) // 20]
    machine = describe()
    lines = [
        "# Pages",
        "",
        f"{len(asked)} questions on five pages of Python's manual each; the answer is one paragraph. {options.pages} "
        "pages are timed.",
        "",
        *rows(found, job),
        "",
        f"The package's time is {statistics.median(ratios):.1f} times ours on the median page, {low:.1f} to {high:.1f} "
        "on nine pages of ten. It failed in "
        f"{found['failures']} of {few * len(SIZES) * len(pages.BUDGETS)} cuts.",
        f"{machine.get('cpu')}, commit {machine.get('commit')}.",
    ]
    text = "\n".join(lines)
    print(text)
    if (options.pages, options.groups, options.more) == (200, 4, 20):
        out = peers.ROOT / "docs" / "evidence" / "benchmarks"
        record = {**found, "ratio": {"median": statistics.median(ratios), "low": low, "high": high}, "machine": machine}
        (out / "pages.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (out / "pages.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
