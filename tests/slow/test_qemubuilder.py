"""The real qemubuilder. Its build takes minutes when it is emulated, as it always is here.

Making its image with `qemubuilder create` would take half an hour more; mmdebstrap makes the same
in two minutes. INVIRTIBUILDER_TEST_BASE_DIR names a directory in which it is kept for the next run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from invirtibuilder.phases.qemubuilder import WEAKER
from invirtibuilder.run import run
from invirtibuilder.sandbox.base import Base, BaseSpec
from tests.support import packages
from tests.support.sites import made_site

PACKAGES = (
    *("build-essential", "dpkg-dev", "aptitude", "pbuilder", "isc-dhcp-client", "iproute2"),
    *("netbase", "zstd", "initramfs-tools"),
)
# udev gives the card a name that qemubuilder does not know. Nor may busybox be there: its init
# opens the console for reading only, and getty does not like that.
HOOK = """mkdir -p "$1/etc/initramfs-tools/hooks"
cat >"$1/etc/initramfs-tools/hooks/zz-names" <<'END'
#!/bin/sh
[ "$1" = prereqs ] && exit 0
find "$DESTDIR" '(' -name 80-net-setup-link.rules -o -name 99-default.link \\
  -o -name '73-special-net*' ')' -delete
END
chmod 755 "$1/etc/initramfs-tools/hooks/zz-names"
"""
FIRST_STAGE = """#!/bin/bash
# What `qemubuilder create` leaves as the first program, in its version 0.89.
echo
echo 'I: qemu-pbuilder first-stage'
export PBUILDER_INIT_VERSION=1
export PATH='/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
stty sane
[ -d /proc/1 ] || mount -n /proc /proc -t proc
ln -s /dev/shm /run/shm
mkdir /run/lock
chmod 01777 /run/lock
mount -t tmpfs tmpfs /run/lock
mount -n -o rw,remount /
mount -t tmpfs tmpfs /tmp
mkdir /dev/shm
chmod 01777 /dev/shm
mount -t tmpfs tmpfs /dev/shm
ln -fs /proc/mounts /etc/mtab
export BUILDDIR=/build
mkdir -p $BUILDDIR
ln -s $BUILDDIR /tmp/buildd
mount -n -t ext3 /dev/sdb $BUILDDIR
$BUILDDIR/input/pbuilder-run
"""


@pytest.fixture(scope="session")
def configuration(base_spec: BaseSpec, base_directory: Path) -> Iterator[Path]:
    """A site's configuration of qemubuilder, with the image that it names."""
    directory = base_directory / "qemubuilder"
    file = directory / "pbuilderrc"
    if not file.exists():
        shutil.rmtree(directory, ignore_errors=True)
        (directory / "place").mkdir(parents=True)
        _image(directory, base_spec)
        uri = next(word for word in base_spec.sources.split() if word.startswith("http"))
        file.write_text(
            f"KERNEL_IMAGE={directory}/vmlinuz\nINITRD={directory}/initrd.img\n"
            f"ARCHITECTURE={base_spec.architecture}\nDISTRIBUTION={base_spec.suite}\n"
            f"BASEPATH={directory}/base.qemu\nBUILDPLACE={directory}/place\n"
            f"BUILDRESULT={directory}\nMIRRORSITE={uri}\n"
            f"MEMORY_MEGS=1024\nARCH_DISKDEVICE=sd\n"
        )
    yield file
    if not os.environ.get("INVIRTIBUILDER_TEST_BASE_DIR"):
        shutil.rmtree(directory)


def _image(directory: Path, spec: BaseSpec) -> None:
    (directory / "hook").write_text(HOOK)
    (directory / "own.sources").write_text(spec.sources)
    tree = directory / "tree"
    included = ",".join((*PACKAGES, f"linux-image-{spec.architecture}"))
    options = ("--mode=root", "--variant=important", f"--include={included}")
    apt = '--aptopt=APT::Install-Recommends "false"'
    hook = f"--essential-hook=sh {directory}/hook"
    sources = directory / "own.sources"
    run(["mmdebstrap", *options, apt, hook, spec.suite, tree, sources], timeout=3600)
    for name in ("vmlinuz", "initrd.img"):
        (source,) = (tree / "boot").glob(f"{name}-*")
        shutil.copyfile(source, directory / name)
    (tree / "pbuilder-run").write_text(FIRST_STAGE)
    (tree / "pbuilder-run").chmod(0o700)
    disk = ("-q", "-F", "-t", "ext3", "-m1", "-O", "sparse_super", "-d", str(tree))
    run(["mke2fs", *disk, directory / "base.qemu", "3G"])
    shutil.rmtree(tree)


@pytest.mark.root
def test_the_same_bit_for_bit(
    base: Base, layers: Path, configuration: Path, tmp_path: Path
) -> None:
    repo = packages.native(tmp_path / "tiny", "tiny", "1.0")
    with made_site(base, layers) as site:
        site.configure(
            pockets__prod__isolation="qemubuilder",
            pockets__prod__vm={"emulation": True},
            pockets__prod__qemubuilder={
                "config": str(configuration),
                "accept_weaker_isolation": True,
            },
        )
        site.package("tiny", repo.path)
        with site.daemon():
            caged = site.publish("staging", "tiny", repo.commit)
            booted = site.publish("prod", "tiny", repo.commit)
        facts = [site.fact(job["job"], "build") for job in (caged, booted)]
        debs = [
            {f["name"]: f["sha256"] for f in fact["files"] if f["name"].endswith("deb")}
            for fact in facts
        ]
        assert debs[0]
        assert debs[0] == debs[1]
        assert "qemubuilder" in facts[1]["environment"]
        assert all(line in site.cli("log", booted["job"]).text for line in WEAKER.splitlines())
        assert not list((site.slot / "scratch").iterdir())
