"""What machines are made of: qemu, a kernel, a first program, and a base as a disk.

All of it is made in a sandbox over the base, from the base's own mirror, and kept as a layer over
it: nothing of it is installed on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from invirtibuilder import files
from invirtibuilder.errors import RoomFault
from invirtibuilder.sandbox import guest, layers
from invirtibuilder.sandbox.base import APT, APT_LEAVES, Base, BaseSpec, with_apt
from invirtibuilder.sandbox.contract import Bind
from invirtibuilder.sandbox.ids import Ids

PACKAGES = ("qemu-system-x86", "busybox-static", "cpio", "e2fsprogs")
KERNEL = "linux-image-cloud-amd64"
ARCHITECTURE = "amd64"

DISK = ("mke2fs", "-q", "-t", "ext4", "-m", "0", "-O", "^has_journal")
"""Without a journal: nothing here outlives a crash anyway."""

ASSEMBLE = """mkdir -p /machine/kernel /machine/initrd/bin /machine/initrd/modules
cd /machine
for deb in /var/cache/apt/archives/linux-image-[0-9]*.deb; do dpkg-deb -x "$deb" kernel; done
cp kernel/boot/vmlinuz-* vmlinuz
cp /bin/busybox initrd/bin/busybox
cp /run/init initrd/init
chmod 755 initrd/init
number=10
for module in "$@"; do
  found=$(find kernel -name "$module.ko*")
  cp "$found" initrd/modules/
  case $found in *.xz) xz -d "initrd/modules/${found##*/}" ;; esac
  mv "initrd/modules/$module.ko" "initrd/modules/$number-$module.ko"
  number=$((number + 1))
done
(cd initrd && find . | cpio --quiet -o -H newc | gzip) >initrd.gz
size=$(($(du -sk /base | cut -f 1) * 5 / 4 + 65536))
"""
"""A constant program: the kernel and the first RAM file system."""

_PARTS = " ".join((guest.INIT, *guest.MODULES, ASSEMBLE, *PACKAGES, KERNEL))


@contextmanager
def kit_of(
    base: Base,
    spec: BaseSpec,
    store: Path,
    ids: Ids,
    *,
    most: int,
    log: int,
    say: Callable[[str], None],
) -> Iterator[Path]:
    """The tree over this base's root with qemu and /machine/{vmlinuz,initrd.gz,base.ext4}.

    It is a layer, made by the first who asks and held while the block runs; `most` is what all
    layers may take. Raises RoomFault when it cannot be made.
    """
    # Another program than this one finds it only if it would make the same.
    name = layers.key(f"{base.digest} machine {_PARTS}", (), ())
    with layers.held(store, name) as kit:
        if kit is not None:
            yield kit
            return
    with files.locked(store / ".machine.lock"), layers.held(store, name) as kit:
        if kit is None:
            say("machine: qemu and a kernel for it come from the mirror, which takes a minute")
            _make(base, spec, store, name, ids, most, log)
    with layers.held(store, name) as kit:
        if kit is None:
            raise RoomFault("the machine's layer is gone", code="no-machine")
        yield kit


def _make(
    base: Base, spec: BaseSpec, store: Path, name: str, ids: Ids, most: int, log: int
) -> None:
    if spec.architecture != ARCHITECTURE:
        raise RoomFault(
            f"isolation `vm` is for {ARCHITECTURE} only, not for {spec.architecture}",
            code="no-machine",
        )
    disk = f"{' '.join(DISK)} -d /base base.ext4 ${{size}}k"
    with layers.made(store, name, ids, most=most) as tree:
        init = tree.parent / "init"
        init.write_text(guest.INIT)
        with_apt(
            spec,
            tree.parent,
            ids,
            lowers=(base.root,),
            scratch=tree,
            binds=(
                Bind(source=init, target="/run/init"),
                Bind(source=base.root, target="/base/root"),
                Bind(source=base.tools, target="/base/tools"),
            ),
            steps=(
                (*APT, "update"),
                (*APT, "install", "--no-install-recommends", *PACKAGES),
                (*APT, "install", "--no-install-recommends", "--download-only", KERNEL),
                ("sh", "-ec", f"{ASSEMBLE}{disk}\n", "assemble", *guest.MODULES),
                ("sh", "-c", f"rm -rf {APT_LEAVES} /machine/kernel /machine/initrd"),
            ),
            what="a machine for the base cannot be made",
            log=log,
        )
        init.unlink()
