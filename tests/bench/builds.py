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
import functools
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from invirtibuilder.debchanges import parse_dsc
from invirtibuilder.model import upstream_version
from invirtibuilder.order import Limits, Order, Room, write_order
from invirtibuilder.run import run
from invirtibuilder.sandbox import layers
from invirtibuilder.sandbox.base import Base, BaseSpec
from invirtibuilder.sandbox.contract import Bind, Command
from invirtibuilder.sandbox.contract import Limits as Bounds
from invirtibuilder.sandbox.ids import Ids, make_tree, remove_tree
from invirtibuilder.sandbox.userns import UserNamespace, upper_of
from tests.bench import figures, others
from tests.bench.figures import Bound
from tests.support import archive, packages, sites
from tests.support.base import kept_base, machine_spec

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
                env={"DEB_BUILD_OPTIONS": f"parallel={figures.processors()}"},
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
def worker() -> Iterator[Worker]:
    """A worker with a base, kept as the tests keep theirs."""
    ids, spec = Ids.of_user(), machine_spec()
    with kept_base(ids) as bases:
        base = sites.made_base(spec, bases, ids)
        with tempfile.TemporaryDirectory(prefix="ib-bench-", dir="/var/tmp") as name:
            directory = Path(name)
            directory.chmod(0o711)
            made = Worker(directory=directory, spec=spec, base=base, ids=ids)
            for part in ("layers", "lists"):
                (made.slot / part).mkdir(parents=True, mode=0o711)
            (made.slot / "bases").symlink_to(bases)
            try:
                yield made
            finally:
                made.forget(apt=(directory / "resolutions").exists())
