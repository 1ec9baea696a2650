"""What benches share: rounds of cases in turn, medians, ratios, bounds, a table, --json.

A bench is started by hand (`.venv/bin/python -m tests.bench.NAME`) and is no test: machines
differ, and so do their figures from minute to minute. Ratios of what was measured in turn last
longer, so bounds are ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What has to hold: `case` takes at most `most` times as long as `base`, and `plus` seconds."""

    case: str
    base: str
    most: float
    plus: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The seconds that each case took, round by round."""

    seconds: Mapping[str, Sequence[float]]

    def median(self, case: str) -> float:
        """Seconds."""
        return statistics.median(self.seconds[case])

    def ratio(self, case: str, base: str) -> float:
        """How many times as long as `base`: medians, of rounds in which both took turns."""
        return self.median(case) / self.median(base)

    def holds(self, bound: Bound) -> bool:
        """Whether a bound holds."""
        return self.median(bound.case) <= bound.most * self.median(bound.base) + bound.plus


def arguments(about: str, rounds: int) -> argparse.ArgumentParser:
    """The options that every bench has: --json and --rounds."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--json", action="store_true", help="print data as JSON")
    parser.add_argument("--rounds", metavar="N", type=int, default=rounds, help=f"({rounds})")
    return parser


def measured(
    cases: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    before: Callable[[], object] = lambda: None,
) -> Figures:
    """Each case once a round, in turn, after a round that does not count (caches are warm).

    `before` is called at the begin of each round and not measured.
    """
    seconds: dict[str, list[float]] = {case: [] for case in cases}
    for number in range(rounds + 1):
        before()
        for case, body in cases.items():
            began = time.perf_counter()
            said = body()
            took = time.perf_counter() - began
            if number:
                seconds[case].append(said if isinstance(said, float) else took)
    return Figures(seconds=seconds)


def report(
    figures: Figures, *, base: str, bounds: Sequence[Bound] = (), as_json: bool = False
) -> int:
    """Print what was measured, as ratios to `base`, and which bounds hold; 1 if one does not."""
    rows = [
        {
            "case": case,
            "rounds": len(times),
            "median": figures.median(case),
            "least": min(times),
            "most": max(times),
            "ratio": figures.ratio(case, base),
        }
        for case, times in figures.seconds.items()
    ]
    judged = [
        {
            "case": bound.case,
            "base": bound.base,
            "most": bound.most,
            "plus": bound.plus,
            "ratio": figures.ratio(bound.case, bound.base),
            "holds": figures.holds(bound),
        }
        for bound in bounds
    ]
    if as_json:
        print(json.dumps({"base": base, "cases": rows, "bounds": judged}, indent=1))
    else:
        _print(rows, judged)
    return 0 if all(bound["holds"] for bound in judged) else 1


def _print(rows: Sequence[Mapping[str, Any]], judged: Sequence[Mapping[str, Any]]) -> None:
    width = max(len(row["case"]) for row in rows)
    print(f"{'':{width}}  {'median':>10}  {'least':>10}  {'most':>10}   ratio")
    for row in rows:
        times = "  ".join(f"{row[key] * 1000:7.1f} ms" for key in ("median", "least", "most"))
        print(f"{row['case']:{width}}  {times}  {row['ratio']:6.2f}")
    for bound in judged:
        verdict = "holds" if bound["holds"] else "DOES NOT HOLD"
        what = f"{bound['case']} <= {bound['most']:g} x {bound['base']}"
        what += f" + {bound['plus']:g} s" if bound["plus"] else ""
        print(f"{verdict}: {what} (it is {bound['ratio']:.2f})")
