"""An export whose tools have been taken over by the content: what it hands out is the commit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder.order import File, Limits, Order, ResultWriter, Room, write_order
from invirtibuilder.phases import export
from invirtibuilder.phases.workshop import Workshop
from invirtibuilder.sandbox.base import Base, BaseSpec
from invirtibuilder.sandbox.contract import Bind, Sandbox
from invirtibuilder.sandbox.ids import Ids, remove_tree
from tests.support.exporting import bundle
from tests.support.packages import Repo
from tests.support.sources import pristine

TOOL = "/usr/bin/pristine-tar"

EVIL = """#!/usr/bin/python3
import glob, os, signal, sys, time

try:
    os.close(os.open(f"/proc/{os.getppid()}/mem", os.O_RDWR))
    print("EVIL: its memory is open", flush=True)
except OSError as error:
    print("EVIL:", error.strerror, flush=True)
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        os.closerange(0, 64)
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True:
            for path in glob.glob("/export/out/*.dsc"):
                with open(path, "r+b") as file:
                    file.seek(-1, 2)
                    file.write(b"!")
    os._exit(0)
os.wait()
os.execv("/run/honest/pristine-tar", sys.argv)
"""
"""Does its work, and goes on as a daemon that spoils the result, byte for byte the same size."""


@dataclass(kw_only=True)
class TakenOver(Workshop):
    """A workshop in which a tool is another's."""

    evil: Sequence[Bind] = ()

    def sandbox(
        self, lowers: Sequence[Path], *, binds: Sequence[Bind] = (), **options: Any
    ) -> Sandbox:
        return super().sandbox(lowers, binds=[*binds, *self.evil], **options)


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return pristine(tmp_path / "repo")


@pytest.fixture
def tools(base: Base, tmp_path: Path) -> Iterator[list[Bind]]:
    (tmp_path / "honest").mkdir()
    honest = tmp_path / "honest/pristine-tar"
    honest.write_bytes((base.tools / TOOL.lstrip("/")).read_bytes())
    (tmp_path / "evil").write_text(EVIL)
    for path in (honest, tmp_path / "evil"):
        path.chmod(0o755)
    yield [
        Bind(source=tmp_path / "honest", target="/run/honest"),
        Bind(source=tmp_path / "evil", target=TOOL),
    ]


def exported(
    tmp_path: Path, name: str, repo: Repo, base: Base, spec: BaseSpec, ids: Ids, evil: list[Bind]
) -> tuple[tuple[File, ...], str]:
    """The files of an export, and its log."""
    work = tmp_path / name
    work.mkdir()
    (work / "slot-1").mkdir()
    (work / "slot-1/bases").symlink_to(base.directory.parents[1])
    said = {
        "package": repo.name,
        "version": repo.version,
        "commit": repo.commit,
        "changelog_entry": None,
        "compression": None,
        "components": [],
        "origs": [],
        **bundle(repo, work / "bundle", "upstream/1.0"),
    }
    (work / "export.json").write_text(json.dumps(said))
    room = Room(
        suite=spec.suite,
        architecture=spec.architecture,
        sources=spec.sources,
        limits=Limits(seconds=120),
    )
    order = Order(kind="export", job="j", attempt="a", room=room, content=said)
    inputs = {"export.json": work / "export.json", "repository.bundle": work / "bundle"}
    write_order(work / "order.tar", order, inputs)
    with (
        (work / "order.tar").open("rb") as content,
        (work / "log").open("w+b") as log,
        (work / "result.tar").open("wb") as result,
    ):
        workshop = TakenOver(
            order=order,
            content=content,
            domain_directory=work,
            directory=work / "slot-1",
            scratch=work,
            ids=ids,
            log_fd=log.fileno(),
            cancelled=lambda: False,
            evil=evil,
        )
        writer = ResultWriter(result)
        try:
            export.do(workshop, writer)
        finally:
            for path in work.iterdir():
                if path.is_dir() and path.stat().st_uid == ids.first_uid:
                    remove_tree(ids, path)
        log.seek(0)
        return tuple(writer.files), log.read().decode()


def test_a_refusal_stays_one(
    tmp_path: Path, repo: Repo, base: Base, base_spec: BaseSpec, ids: Ids, tools: list[Bind]
) -> None:
    report = json.dumps({"ok": True, "reasons": []})
    forging = EVIL.partition("        while True:")[0] + (
        "        os.makedirs('/export/out', exist_ok=True)\n"
        "        while True:\n"
        "            for name in ('greet_1.0-1.dsc', 'report.json'):\n"
        "                try:\n"
        f"                    open('/export/out/' + name, 'w').write({report!r})\n"
        "                except OSError:\n"
        "                    pass\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "sys.exit(1)\n"
    )
    (tmp_path / "evil").write_text(forging)
    with pytest.raises(export.Unfaithful) as caught:
        exported(tmp_path, "forged", repo, base, base_spec, ids, tools)
    assert caught.value.code == "pristine-tar"


def test_a_tool_that_is_taken_over_changes_nothing(
    tmp_path: Path, repo: Repo, base: Base, base_spec: BaseSpec, ids: Ids, tools: list[Bind]
) -> None:
    spoilt, log = exported(tmp_path, "spoilt", repo, base, base_spec, ids, tools)
    right, other = exported(tmp_path, "right", repo, base, base_spec, ids, [])
    assert "EVIL: Permission denied" in log
    assert "EVIL" not in other
    assert spoilt == right
