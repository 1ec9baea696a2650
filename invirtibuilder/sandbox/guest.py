"""Inside the machine: its first program, and the script that it runs for one command.

Both are busybox's shell in an initial RAM file system. The host writes them; what they mount was
written by guests of the same job, by the phase that made a layer, or by us.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from invirtibuilder.sandbox.contract import BUILD_ID, Bind, Command, Limits

MODULES = (
    *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"),
    *("virtio_blk", "virtio_console", "overlay"),
)
"""What Debian's cloud kernel has as modules and a machine needs, in the order of loading."""

INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /base /points /root /disks /control
/bin/busybox --install -s /bin
export PATH=/bin
umask 022
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module"; done
exec 9>/dev/ttyS1
tar -xf /dev/vda -C /control
. /control/start
sync
echo "status $code $(cat /count) ${killed:-0} ${refused:-0} $large $full" >&9
echo N >/sys/class/tty/ttyS0/console
poweroff -f
"""
"""The initial RAM file system's first program. The control disk is the first, its status the last
word on the second serial line, which nothing but root can write to."""

HIDE = """set -e
mount -t proc -o nosuid,nodev,noexec proc /root/proc
mount -t tmpfs -o ro,mode=555,size=4k sys /root/sys
mount -t tmpfs -o nosuid,mode=755,size=1m dev /root/dev
while read -r name minor; do
  mknod -m 666 "/root/dev/$name" c ${minor%,*} ${minor#*,}
done <<END
null 1,3
zero 1,5
full 1,7
random 1,8
urandom 1,9
tty 5,0
END
mkdir -m 755 /root/dev/pts
mount -t devpts -o nosuid,noexec,newinstance,ptmxmode=0666,mode=620,gid=5 devpts /root/dev/pts
mkdir -m 1777 /root/dev/shm
mount -t tmpfs -o nosuid,nodev,noexec,mode=1777 shm /root/dev/shm
ln -s pts/ptmx /root/dev/ptmx
ln -s /proc/self/fd /root/dev/fd
ln -s /proc/self/fd/0 /root/dev/stdin
ln -s /proc/self/fd/1 /root/dev/stdout
ln -s /proc/self/fd/2 /root/dev/stderr
mount -t tmpfs -o nosuid,nodev,mode=755 run /root/run
mkdir -m 1777 /root/run/lock
if [ -e /disks/scratch ]; then
  mount -o bind /disks/scratch/tmp /root/tmp
  mount -o remount,bind,nosuid,nodev /root/tmp
else
  mount -t tmpfs -o nosuid,nodev,mode=1777 tmp /root/tmp
fi
. /control/binds
echo 0 >/proc/sys/user/max_user_namespaces
cd /root
mount -o move . /
exec chroot . /bin/sh -c "$(cat /control/command)"
"""
"""Makes the root what it is in the rootless sandbox, and leaves everything else behind."""

CAPABILITIES = (
    *("chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid"),
    *("net_bind_service", "sys_chroot", "setfcap"),
)
"""Of the machine's root: those of the rootless sandbox's, so that both build the same."""


WRITABLE = "noatime,noinit_itable"
FILE = "file"
"""What a single file is called on its disk."""


@dataclass(frozen=True, kw_only=True)
class Disks:
    """Which disk is what, by the names of their devices; "" for one that is not there."""

    base: str = ""
    layers: Sequence[str] = ()
    """Topmost first; a name with a slash is a directory on the base's disk."""
    scratch: str = ""
    binds: Sequence[str] = ()
    stdin: str = ""
    result: str = ""


def control(
    command: Command,
    disks: Disks,
    binds: Sequence[Bind],
    limits: Limits,
    stdin: int,
) -> dict[str, bytes]:
    """The control disk's files for one command; `stdin` is the length of its standard input."""
    return {
        "start": _start(disks, binds, limits, stdin).encode(),
        "hide": HIDE.encode(),
        "binds": _binds(disks, binds).encode(),
        "command": _command(command, limits).encode(),
    }


def _start(disks: Disks, binds: Sequence[Bind], limits: Limits, stdin: int) -> str:
    lines = ["hostname build", "ip link set lo up", f"mount -t ext4 -o ro /dev/{disks.base} /base"]
    lowers = ["/points"]
    for layer in disks.layers:
        if "/" in layer:
            lowers.append(f"/{layer}")
        else:
            lines += [_mounted(layer, layer, "ro")]
            lowers.append(f"/disks/{layer}/upper")
    options = f"userxattr,lowerdir={':'.join(lowers)}"
    lines += ["mount -t tmpfs -o mode=755 points /points"]
    for device, bind in zip(disks.binds, binds, strict=True):
        lines.append(
            _mounted(device, device, f"{WRITABLE if bind.writable else 'ro'},nosuid,nodev")
        )
        lines.append(_point(f"/points{bind.target}", bind))
    if disks.scratch:
        lines += [
            _mounted(disks.scratch, "scratch", WRITABLE),
            "cd /disks/scratch; mkdir -p upper work tmp; chmod 1777 tmp; cd /",
        ]
        options += ",upperdir=/disks/scratch/upper,workdir=/disks/scratch/work"
    else:
        options = f"ro,{options}"
    lines.append(f"mount -t overlay -o {options} root /root")
    return "\n".join([*lines, _run(disks, limits, stdin), ""])


def _mounted(device: str, name: str, options: str) -> str:
    return f"mkdir -p /disks/{name} && mount -t ext4 -o {options} /dev/{device} /disks/{name}"


def _run(disks: Disks, limits: Limits, stdin: int) -> str:
    """Run it below a control group. Output goes through pipes, so that what opens /dev/stderr
    inside may write there."""
    feed = f"head -c {stdin} /dev/{disks.stdin} |" if disks.stdin else ""
    bounds = {"pids.max": limits.processes, "memory.max": limits.memory}
    lines = [f"echo {n} >$group/{file}" for file, n in bounds.items() if n is not None]
    size = limits.file_size
    large = f"$(find /disks -type f -size {size}c | wc -l)" if size is not None else "0"
    return f"""
mkdir /groups
mount -t cgroup2 groups /groups
echo +pids +memory >/groups/cgroup.subtree_control
echo 1 >/proc/sys/vm/overcommit_memory
group=/groups/job
mkdir $group
{"; ".join(["echo 1 >$group/memory.oom.group", *lines])}
mkfifo -m 622 /log /out
cat /log >/dev/vport0p1 &
{f"tee /dev/{disks.result} </out | wc -c >/count" if disks.result else "wc -c </out >/count"} &
echo started >&9
{feed} sh -c 'echo 0 >$1/cgroup.procs; exec unshare -m -p -f /bin/sh /control/hide' - $group \
  9>&- 2>/log >{"/out" if disks.result else "/log 7>/out"} {"" if feed else "</dev/null"}
code=$?
wait
killed=$(sed -n 's/^oom_kill //p' /proc/vmstat)
refused=$(sed -n 's/^max //p' $group/pids.events)
large={large}
full=$(df -P -k | awk '$6 ~ "^/disks/" && $4 < 64' | wc -l)
umount /disks/* 2>/dev/null"""


def _binds(disks: Disks, binds: Sequence[Bind]) -> str:
    lines = []
    for device, bind in zip(disks.binds, binds, strict=True):
        if bind.target.startswith("/run/"):
            lines.append(_point(f"/root{bind.target}", bind))
        source = f"/disks/{device}" if bind.source.is_dir() else f"/disks/{device}/{FILE}"
        lines.append(f"mount -o bind {source} {shlex.quote(f'/root{bind.target}')}")
    return "\n".join([*lines, ""])


def _point(path: str, bind: Bind) -> str:
    """What makes a mount point."""
    if bind.source.is_dir():
        return f"mkdir -p {shlex.quote(path)}"
    return f"mkdir -p {shlex.quote(path.rpartition('/')[0])} && touch {shlex.quote(path)}"


def _command(command: Command, limits: Limits) -> str:
    """What the base's own shell runs as the first process of the command's namespace."""
    size = [] if limits.file_size is None else [f"--fsize={limits.file_size}"]
    if command.user == "build":
        identity = [f"--reuid={BUILD_ID}", f"--regid={BUILD_ID}", "--clear-groups"]
        identity += ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    else:
        identity = ["--bounding-set", ",".join(["-all", *(f"+{c}" for c in CAPABILITIES)])]
    argv = [
        *("/usr/bin/env", "-i", *(f"{k}={v}" for k, v in command.environment().items())),
        *("/usr/bin/setsid", "/usr/bin/prlimit", "--core=0", *size),
        *("/usr/bin/setpriv", *identity, "--", *command.argv),
    ]
    return f"cd {shlex.quote(command.cwd)} || exit 127\n{shlex.join(argv)}\nexit $?\n"
