"""How long builds take here, against bare dpkg-buildpackage and against sbuild.

Wants what the tests want, and root to install sbuild; leaves nothing else behind. Parts: `enter` a
sandbox; `tiny`, a debhelper package whose dependencies are there already, from order to result;
`hello`, a real autotools package likewise; `cold`, with its dependencies to be installed, and with
APT to be asked, too; `many`, twenty tiny packages; `publish`, from a submission until APT can
install it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from invirtibuilder.debchanges import parse_dsc
from invirtibuilder.order import Limits, Order, Room, write_order
from invirtibuilder.run import run
from invirtibuilder.sandbox import layers
from invirtibuilder.sandbox.base import Base, BaseSpec, make_base
from invirtibuilder.sandbox.contract import Bind, Command
from invirtibuilder.sandbox.contract import Limits as Bounds
from invirtibuilder.sandbox.ids import Ids, make_tree, remove_tree
from invirtibuilder.sandbox.userns import UserNamespace, upper_of
from tests.bench import figures, others
from tests.bench.figures import Bound
from tests.support import archive, packages, sites
from tests.support.base import KEPT, machine_spec, remove_shared

ENTER = "ours"
OURS, BARE, SBUILD = "ours, order to result", "bare dpkg-buildpackage", "sbuild, unshare"
LAYER, APT = "ours, to be installed", "ours, nothing kept"
PLAIN = "unshare with the ids"
INSTALLABLE, INCLUDED = "ours, submit to installable", "sbuild, reprepro include"
MANY, IN_TURN = "ours, jobs: 2", "sbuild, in turn"
TINY = {
    "debian/rules": "#!/usr/bin/make -f\n%:\n\tdh $@\n",
    "debian/install": "greeting usr/share/tiny\n",
}
BUILD = """cd /build
tar -xf - --no-same-owner
cd in
dpkg-source -x "$1" ../source >/dev/null
cd ../source
began=$(date +%s%N)
dpkg-buildpackage -b -us -uc -rfakeroot >/dev/null 2>&1
echo "took $(($(date +%s%N) - began))"
"""


def source(repo: packages.Repo, folder: Path) -> Path:
    """The source package of a repository; its .dsc."""
    folder.mkdir()
    run(["dpkg-source", "-b", repo.path], cwd=folder)
    (dsc,) = folder.glob("*.dsc")
    return dsc


def tiny(folder: Path, name: str = "tiny") -> packages.Repo:
    """A native package that builds with debhelper."""
    return packages.native(folder, name, build_depends="debhelper-compat (= 13)", files=TINY)


@dataclasses.dataclass(kw_only=True)
class Worker:
    """A worker's directory with the base in it, and an order for a source package."""

    directory: Path
    spec: BaseSpec
    base: Base
    ids: Ids
    dsc: Path = Path()

    @property
    def slot(self) -> Path:
        return self.directory / "slot-1"

    def prepare(self, dsc: Path) -> None:
        """Write the order."""
        self.dsc = dsc
        parsed = parse_dsc(dsc.read_bytes())
        content = {"dsc": dsc.name, "package": parsed.source, "version": parsed.version}
        room = Room(
            suite=self.spec.suite,
            architecture=self.spec.architecture,
            sources=self.spec.sources,
            limits=Limits(seconds=others.LONG),
        )
        order = Order(kind="build", job="bench", attempt="bench.1", room=room, content=content)
        inputs = {path.name: path for path in dsc.parent.iterdir()}
        write_order(self.directory / "order.tar", order, inputs)

    def ours(self) -> None:
        """From the order to the result."""
        argv = [sys.executable, "-I", "-m", "invirtibuilder", "worker", "--slots", "1"]
        with (
            (self.directory / "order.tar").open("rb") as order,
            (self.directory / "result.tar").open("wb") as result,
            (self.directory / "log").open("wb") as log,
        ):
            argv += ["--directory", str(self.directory)]
            run(argv, stdin=order, stdout=result, stderr=log, timeout=others.LONG)

    def bare(self) -> float:
        """dpkg-buildpackage alone, in the tree that `ours` has prepared."""
        log = (self.directory / "log").read_text(errors="replace")
        found = re.search(r"layer ([0-9a-f]{12})", log)
        lowers = [self.base.root]
        if found:
            (layer,) = (self.slot / "layers").glob(f"{found[1]}*")
            lowers.insert(0, upper_of(layer / "tree"))
        trees = [Path(tempfile.mkdtemp(dir=self.directory)) / "tree" for _ in range(2)]
        for tree in trees:
            tree.parent.chmod(0o711)
            make_tree(self.ids, tree)
        room = UserNamespace(
            ids=self.ids,
            lowers=lowers,
            scratch=trees[0],
            binds=[Bind(source=trees[1], target="/build", writable=True)],
            limits=Bounds(seconds=others.LONG),
        )
        try:
            return self._timed(room)
        finally:
            for tree in trees:
                remove_tree(self.ids, tree)
                tree.parent.rmdir()

    def _timed(self, room: UserNamespace) -> float:
        open_to_all = Command(argv=("chmod", "777", "/build"), user="root")
        assert room.run(open_to_all).code == 0
        with (
            (self.directory / "order.tar").open("rb") as order,
            (self.directory / "bare").open("w+b") as out,
        ):
            command = Command(
                argv=("sh", "-euc", BUILD, "bare", self.dsc.name),
                user="build",
                stdin=order.fileno(),
                stdout=out.fileno(),
                # As `ours` has it.
                env={"DEB_BUILD_OPTIONS": f"parallel={os.cpu_count() or 1}"},
            )
            assert room.run(command).code == 0
            out.seek(0)
            return int(out.read().split()[-1]) / 1e9

    def forget(self, *, apt: bool) -> None:
        """Remove the layers; with `apt` also what was resolved and downloaded."""
        for layer in (self.slot / "layers").iterdir():
            layers.discard(layer, self.ids)
        for lists in (self.slot / "lists").iterdir() if apt else ():
            layers.discard(lists, self.ids)
        for name in ("resolutions", "downloads") if apt else ():
            shutil.rmtree(self.directory / name)

    def cold(self, *, apt: bool) -> float:
        """`ours` after `forget`."""
        self.forget(apt=apt)
        began = time.perf_counter()
        self.ours()
        return time.perf_counter() - began


@contextlib.contextmanager
def shared() -> Iterator[Base]:
    """A base of this machine's suite, kept as the tests keep theirs."""
    kept = os.environ.get(KEPT)
    directory = Path(kept or tempfile.mkdtemp(prefix="ib-bench-", dir="/var/tmp"))
    directory.chmod(0o755)
    try:
        with (directory / "base.log").open("ab") as log:
            yield make_base(machine_spec(), directory, Ids.of_user(), log=log.fileno())
    finally:
        if not kept:
            remove_shared(directory)


@contextlib.contextmanager
def worker(base: Base, folder: Path) -> Iterator[Worker]:
    """A worker of its own with the base."""
    folder.mkdir()
    made = Worker(directory=folder, spec=machine_spec(), base=base, ids=Ids.of_user())
    made.slot.mkdir()
    (made.slot / "bases").symlink_to(base.directory.parents[1])
    for path in (folder, made.slot):
        path.chmod(0o711)
    try:
        yield made
    finally:
        if (folder / "resolutions").exists():
            made.forget(apt=True)


def enter(base: Base) -> dict[str, Callable[[], object]]:
    """A command that does nothing."""
    room = UserNamespace(
        ids=Ids.of_user(), lowers=[base.root], scratch=None, limits=Bounds(seconds=60)
    )
    nothing = Command(argv=("true",), user="build")
    plain = ["unshare", "--map-auto", "--map-root-user", "--mount", "--pid", "--net", "--fork"]
    return {PLAIN: lambda: run([*plain, "true"]), ENTER: lambda: room.run(nothing)}


def warm(work: Worker, dsc: Path, sbuild: others.Sbuild) -> dict[str, Callable[[], object]]:
    """A source package whose dependencies are installed already."""
    work.prepare(dsc)
    work.ours()
    return {BARE: work.bare, OURS: work.ours, SBUILD: lambda: sbuild.build(dsc)}


def cold(work: Worker, dsc: Path, sbuild: others.Sbuild) -> dict[str, Callable[[], object]]:
    """The same, its dependencies not installed."""
    work.prepare(dsc)
    work.ours()
    return {
        LAYER: lambda: work.cold(apt=False),
        APT: lambda: work.cold(apt=True),
        SBUILD: lambda: sbuild.build(dsc),
    }


def installable(site: sites.TestSite, repos: Sequence[packages.Repo]) -> None:
    """Submit packages, and wait until APT can install all of these builds."""
    jobs = [site.cli("submit", "dev", repo.name, repo.commit).text.strip() for repo in repos]
    dist = site.directory / "archive/dev/dists/dev/main"
    (index,) = dist.glob("binary-*/Packages")
    waiting = dict(zip(jobs, repos, strict=True))
    until = time.monotonic() + others.LONG
    while waiting:
        listed = index.read_text()
        for job in list(waiting):
            state = json.loads((site.directory / "jobs" / job / "state.json").read_text())
            assert state["state"] in ("queued", "running", "waiting", "published"), state
            if state["version"] and f"Version: {state['version']}\n" in listed:
                del waiting[job]
        assert time.monotonic() < until
        time.sleep(0.005)


def publish(
    site: sites.TestSite,
    folder: Path,
    work: Worker,
    sbuild: others.Sbuild,
    reprepro: others.Repository,
) -> dict[str, Callable[[], object]]:
    """From a submission until APT can install the package."""
    repo = tiny(folder / "repo")
    site.package(repo.name, repo.path)
    dsc = source(repo, folder / "dsc")
    work.prepare(dsc)
    work.ours()
    return {
        BARE: work.bare,
        INSTALLABLE: lambda: installable(site, [repo]),
        INCLUDED: lambda: reprepro.include(sbuild.build(dsc), repo.name),
    }


def many(
    site: sites.TestSite, folder: Path, sbuild: others.Sbuild, count: int
) -> dict[str, Callable[[], object]]:
    """Many tiny packages."""
    repos = [tiny(folder / f"tiny{n}", f"tiny{n}") for n in range(count)]
    for repo in repos:
        site.package(repo.name, repo.path)
    found = [source(repo, folder / f"dsc{n}") for n, repo in enumerate(repos)]
    return {
        MANY: lambda: installable(site, repos),
        IN_TURN: lambda: [sbuild.build(dsc) for dsc in found],
    }


PARTS = ("enter", "tiny", "hello", "cold", "publish", "many")
WARM = (Bound(case=OURS, base=BARE, most=1.5), Bound(case=OURS, base=SBUILD, most=0.1))
BOUNDS: dict[str, tuple[Bound, ...]] = {
    "tiny": WARM,
    "publish": (Bound(case=INSTALLABLE, base=BARE, most=1, plus=2),),
}
BASES = {"enter": PLAIN, "cold": SBUILD, "many": IN_TURN}


def cases(
    part: str, stack: contextlib.ExitStack, folder: Path, count: int
) -> dict[str, Callable[[], object]]:
    """What is to be measured for a part, prepared."""
    base = stack.enter_context(shared())
    if part == "enter":
        return enter(base)
    spec = machine_spec()
    sbuild = stack.enter_context(others.sbuild(spec, base.directory.parents[1] / "sbuild.tar"))
    work = stack.enter_context(worker(base, folder / "worker"))
    if part in ("tiny", "cold"):
        dsc = source(tiny(folder / "repo"), folder / "dsc")
        return warm(work, dsc, sbuild) if part == "tiny" else cold(work, dsc, sbuild)
    if part == "hello":
        return warm(work, archive.fetch_dsc("hello", folder / "dsc", spec.suite), sbuild)
    domain = {sites.DOMAIN: {"jobs": 2}} if part == "many" else {sites.DOMAIN: {}}
    site = stack.enter_context(sites.made_site(base, sites.shared_layers(base), domains=domain))
    stack.enter_context(site.daemon())
    if part == "many":
        return many(site, folder, sbuild, count)
    reprepro = stack.enter_context(others.repository(spec.architecture))
    return publish(site, folder, work, sbuild, reprepro)


def main() -> int:
    """Measure, print, and say whether the bounds hold."""
    parser = figures.arguments(__doc__ or "", 5)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--packages", type=int, default=20, metavar="N", help="of `many` (20)")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"not a part: {', '.join(sorted(unknown))}")
    code = 0
    for part in args.parts or PARTS:
        with contextlib.ExitStack() as stack:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="ib-b-", dir="/var/tmp"))
            Path(name).chmod(0o755)
            found = figures.measured(cases(part, stack, Path(name), args.packages), args.rounds)
            if not args.json:
                print(f"\n{part}")
            base = BASES.get(part, BARE)
            code |= figures.report(found, base=base, bounds=BOUNDS.get(part, ()), as_json=args.json)
    return code


if __name__ == "__main__":
    sys.exit(main())
