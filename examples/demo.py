"""The demo: MiniLM made twice as fast on this machine, and compared with two simpler ways of doing so.

Needs Python, make and pip. Sentences come from the Brown corpus where npm is there, else from Python's own prose.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

OUT = Path("demo")
STEPS = int(os.environ.get("SECATEUR_DEMO_STEPS", "400"))


def main() -> int:
    """Run, print what came out, and say where the report is. Returns the exit code."""
    from rich.console import Console

    sys.path.append(str(Path(__file__).parents[1] / "tests"))  # where packages are fetched by name
    import secateur
    from assets import packages
    from secateur.errors import DataError, SecateurError
    from secateur.reports import evidence
    from secateur.studies import baselines

    say, began = Console(), time.perf_counter()
    try:
        say.print("[bold]1/3[/bold] all-MiniLM-L6-v2 and sentences to distil on")
        model = packages.minilm()
        try:
            sentences = [text for _, text in packages.brown() if 5 <= len(text.split()) <= 40]
        except DataError as error:
            say.print(f"    {error}\n    Distilling on English prose that ships with Python instead.")
            sentences = [text for text in packages.standard_library_text() if 5 <= len(text.split()) <= 40]
        say.print("[bold]2/3[/bold] ZipLM: latency table, pruning database, search, cut, distillation")
        how = {"calibration": 1024, "trials": 20, "timings": 8, "steps": STEPS, "train_batch": 16, "batch": 16}
        secateur.run("ziplm", model, sentences, "speedup=2x", OUT, **how)
        say.print("[bold]3/3[/bold] the same training for two simpler cuts")
        rows = baselines.add(OUT, model, sentences)
    except SecateurError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; make demo resumes", file=sys.stderr)
        return 130
    say.print(evidence.rich_table(evidence.table(rows[0]), title="MiniLM, speedup=2x"))
    for note in rows[0].cut.notes:
        say.print(f"note: {note}", highlight=False, markup=False)
    say.print(f"{rows[0].verdict}; {time.perf_counter() - began:.0f} s; the report: {OUT / 'report.html'}")
    return 0 if rows[0].verdict == "met" else 1


if __name__ == "__main__":
    sys.exit(main())
