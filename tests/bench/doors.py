"""How long a submission takes behind the real remctld, as ratios to other programs behind it.

Wants what the tests want (krb5-kdc, remctl-server, remctl-client), and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from invirtibuilder.door.submit import check
from tests.bench import figures
from tests.bench.figures import Bound
from tests.support import doors, packages
from tests.support import place as places
from tests.support.cannedworker import CannedWorker
from tests.support.kdc import Realm, kdc, remctld
from tests.support.place import Place, until

PRINTS, SILENT, JSON = "no-op that prints", "silent no-op", "Python with json"
DOWN, UP, ANSWER = "submit, daemon down", "submit, daemon up", "admission's answer"
PROGRAMS = {
    PRINTS: "#!/bin/sh\necho 20260102T030405.678901-abcd\n",
    SILENT: "#!/bin/sh\nexit 0\n",
    JSON: "#!/usr/bin/python3 -IS\nimport json\nprint(json.dumps({'v': 1}))\n",
}
BOUNDS = (
    Bound(case=DOWN, base=PRINTS, most=15),
    Bound(case=DOWN, base=SILENT, most=15),
    Bound(case=DOWN, base=JSON, most=1.5),
)
"""Those of the doors' programs; with the daemon up they wait for it besides."""


def rules(folder: Path, place: Place) -> Path:
    """remctld's command file: the door's own line, and one for each other program."""
    lines = [(doors.installed(place) / "conf").read_text()]
    for number, text in enumerate(PROGRAMS.values()):
        program = folder / f"program-{number}"
        program.write_text(text)
        program.chmod(0o755)
        lines.append(f"other {number} {program} princ:{doors.ALICE}\n")
    (folder / "conf").write_text("".join(lines))
    return folder / "conf"


@contextlib.contextmanager
def site(realm: Realm) -> Iterator[tuple[Place, CannedWorker, Callable[..., None]]]:
    """A site without a daemon, and a function that calls its remctld."""
    with (
        tempfile.TemporaryDirectory(prefix="ib-bench-") as name,
        places.canned() as (place, worker),
    ):
        doors.prepare(place)
        place.package(packages.native(Path(name, "greet")))
        place.cli("acl", "compile", check=True)
        env = realm.of("alice")
        with remctld(realm, rules(Path(name), place), backlog=doors.backlog()) as port:

            def call(*words: str) -> None:
                argv = ["remctl", "-p", str(port), "-s", "host/localhost", "localhost"]
                # Not by `run`: that forks this Python, which takes longer than some cases.
                subprocess.run([*argv, *words], env=env, capture_output=True, check=True)

            yield place, worker, call


def main() -> int:
    """Measure, print, and say whether the bounds hold."""
    args = figures.arguments(__doc__ or "", 30).parse_args()
    serial = itertools.count()
    with kdc() as realm, site(realm) as (place, worker, call):
        cases: dict[str, Callable[[], object]] = {
            case: lambda number=number: call("other", str(number))  # type: ignore[misc]
            for number, case in enumerate(PROGRAMS)
        }
        cases[DOWN] = lambda: call("build", "submit", "dev", "greet", f"{next(serial):040x}")
        down = figures.measured(cases, args.rounds)
        # What was queued so far names commits that do not exist: nobody shall take it up.
        for entry in (place.site.queue / "new").iterdir():
            entry.unlink()
        # The first job stays where it is, so that nothing else runs meanwhile.
        with place.daemon(), worker.held("export"):
            until(place.site.socket.exists)
            question = ("dev", "greet", "main")
            up = figures.measured(
                {
                    UP: lambda: call("build", "submit", *question),
                    ANSWER: lambda: check(place.site.socket, question, doors.ALICE),
                },
                args.rounds,
            )
    seconds = {**down.seconds, **up.seconds}
    return figures.report(
        figures.Figures(seconds=seconds), base=PRINTS, bounds=BOUNDS, as_json=args.json
    )


if __name__ == "__main__":
    sys.exit(main())
