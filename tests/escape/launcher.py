"""Carries out an export and a build as a worker does, and tries the probes before each command.

Started in a process of its own, which has what a careless service might: a terminal, a descriptor
and a directory of the machine, a key, groups. `python -m tests.escape.launcher WORK`: WORK has
export.tar (an order), probes/ and worker/slot-1/; the log is standard output.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from invirtibuilder.errors import PackageFault
from invirtibuilder.order import (
    Manifest,
    Order,
    ResultWriter,
    read_order,
    read_result,
    write_order,
)
from invirtibuilder.phases import build, export
from invirtibuilder.phases.workshop import Workshop
from invirtibuilder.sandbox.contract import Bind, Proxy, Sandbox
from invirtibuilder.sandbox.ids import Ids, remove_tree

PLACE = "/run/escape"


@dataclasses.dataclass(kw_only=True)
class Probing(Workshop):
    """A workshop whose sandboxes have the probes, run with each command's own settings."""

    probes: Path
    phase: str = ""
    over: list[tuple[Sandbox, list[str]]] = dataclasses.field(default_factory=list)

    def stage(self, text: str) -> None:
        self.phase = text.partition(":")[0]
        super().stage(text)

    def sandbox(
        self, lowers: Sequence[Path], *, binds: Sequence[Bind] = (), **options: Any
    ) -> Sandbox:
        binds = [*binds, Bind(source=self.probes, target=PLACE)]
        made = super().sandbox(lowers, binds=binds, **options)
        self.over.append((made, [str(path.resolve()) for path in lowers]))
        return made

    def run(
        self,
        sandbox: Sandbox,
        argv: Sequence[str],
        *,
        user: str = "build",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        proxy: Proxy | None = None,
        **options: Any,
    ) -> None:
        same: dict[str, Any] = {"user": user, "env": env, "cwd": cwd, "proxy": proxy}
        what = "-".join((options.get("what") or argv[0]).split())
        label = f"{self.phase}/{user}/{what}"
        lowers = next(lowers for made, lowers in self.over if made is sandbox)
        os.write(self.log_fd, f"LOWERS {label} {json.dumps(lowers)}\n".encode())
        super().run(sandbox, [f"{PLACE}/probes", label], **same, what="the probes")
        super().run(sandbox, argv, **same, **options)


def main(work: Path) -> None:
    # What goes wrong is to be read, and not by the terminal.
    os.dup2(1, 2)
    exported = work / "exported"
    exported.mkdir()
    order = carry_out(work, work / "export.tar", exported)
    content = {"package": order.content["package"], "version": order.content["version"]}
    (dsc,) = exported.glob("*.dsc")
    write_order(
        work / "build.tar",
        dataclasses.replace(order, kind="build", content={**content, "dsc": dsc.name}),
        {path.name: path for path in exported.iterdir()},
    )
    (work / "built").mkdir()
    carry_out(work, work / "build.tar", work / "built")


def carry_out(work: Path, path: Path, into: Path) -> Order:
    """Do one order; its files, accepted as the daemon does, are in `into` afterwards."""
    with path.open("rb") as stream:
        order = read_order(stream)
    scratch = work / f"scratch-{order.kind}"
    scratch.mkdir()
    ids = Ids.of_user()
    result = work / f"{order.kind}-result.tar"
    try:
        with path.open("rb") as content, result.open("wb") as out:
            workshop = Probing(
                order=order,
                content=content,
                domain_directory=work / "worker",
                directory=work / "worker" / "slot-1",
                scratch=scratch,
                ids=ids,
                log_fd=1,
                cancelled=lambda: False,
                probes=work / "probes",
            )
            writer = ResultWriter(out)
            do = {"export": export.do, "build": build.do}[order.kind]
            report = do(workshop, writer)
            files = tuple(writer.files)
            manifest = Manifest(
                kind=order.kind, attempt=order.attempt, ok=True, files=files, report=report
            )
            writer.finish(manifest)
    except PackageFault as fault:
        sys.exit(f"{order.kind} failed: {fault}")
    finally:
        for tree in scratch.iterdir():
            if tree.is_dir() and tree.stat().st_uid != os.geteuid():
                remove_tree(ids, tree)
    read_result(result, into, order)
    return order


if __name__ == "__main__":
    main(Path(sys.argv[1]))
