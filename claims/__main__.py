"""Run claims: `python -m claims [SYSTEM ...] [--stale]`; with PILOT=1 in the environment, one small seed of each."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from claims._lab import ran, rows, settings
from claims._lab.claim import Claim, claims_of, systems


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the claims and print what came out. A verdict is a result: the status tells only whether they ran."""
    parser = argparse.ArgumentParser(prog="python -m claims", description=__doc__)
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help="all, unless some are named")
    parser.add_argument("--stale", action="store_true", help="only claims whose row is stale or missing")
    parser.add_argument("--only", default="", metavar="CLAIM", help="one claim of each system, such as headline")
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.systems) - set(systems()))
    if unknown:
        parser.error(f"no claims/{unknown[0]}.py: there are {', '.join(systems())}")
    for system in chosen.systems or systems():
        wanted = [claim for claim in claims_of(system) if chosen.only in ("", claim.name)]
        asked = [claim for claim in wanted if not chosen.stale or is_stale(claim)]
        for claim in asked:
            if not settings.PILOT:
                ran.note(system, claim.name)
            run(claim)
    return 0


def is_stale(claim: Claim) -> bool:
    """Whether a claim has no row of this code."""
    file = rows.path(settings.ROWS, claim.recipe, claim.name)
    return not file.exists() or rows.read(file).stale


def run(claim: Claim) -> None:
    """Run one claim and print its figures."""
    start = time.perf_counter()
    row = claim.judged()
    print(f"\n{row.recipe} {row.claim}: {row.question}")
    for arm, measures in row.arms.items():
        print(f"  {arm}: " + ", ".join(f"{measure} {figure}" for measure, figure in measures.items()))
    difference = row.difference
    if difference is not None and not settings.PILOT:
        print(f"  {difference.ours} - {difference.baseline}: {difference.figure}: {row.verdict}")
    print(f"  {time.perf_counter() - start:.0f} s{', a pilot' if settings.PILOT else ''}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
