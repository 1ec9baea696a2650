"""The package's prerm ends what is ours; postrm takes it away, whatever is in its way."""

from __future__ import annotations

import pytest

from tests.support.installed import ACCOUNTS, SITE, TOP, Installed, installed

pytestmark = pytest.mark.root

LOGS = "/var/log/invirtibuilder"
WORKERS = ("ib-build", "ib-build-untrusted")
PLAIN = """
for name in invirtibuilder ib-sign ib-build ib-build-untrusted; do
  umount "/var/lib/$name"
  chown "$name" "/var/lib/$name"
done
"""
"""The directories of `installed` are mounted, as builds need a disk."""
USED = """
mkdir /var/lib/ib-submit /var/lib/ib-git /run/invirtibuilder "$1"
touch /run/invirtibuilder/daemon.pid
for name in ib-build ib-build-untrusted; do
  mkdir -p "/var/lib/$name/slot-1/.base"
  ln -s /etc "/var/lib/$name/slot-1/etc"
  chown 165536 "/var/lib/$name/slot-1"
done
install -d -o ib-notify "$1/audit"
for name in daemon signer notifier worker-trusted worker-other; do touch "$1/$name.log"; done
"""
"""What services and builds leave."""


def purge(system: Installed) -> None:
    done = system.run("sh", TOP / "debian/invirtibuilder.postrm", "purge", check=False)
    assert done.code == 0, done.err.decode()
    assert system.path("/etc/passwd").exists()


def accounts(system: Installed) -> set[str]:
    """Those that there are; each with its group."""
    users, groups = (
        set(system.sh('cut -d: -f1 "/etc/$1"', file).splitlines()) & set(ACCOUNTS)
        for file in ("passwd", "group")
    )
    assert users == groups
    return users


def left(system: Installed) -> set[str]:
    paths = "/var/lib/ib-* /var/lib/invirtibuilder /run/invirtibuilder /etc/invirtibuilder"
    return set(system.sh(f"find {paths} {LOGS} 2>/dev/null || :").splitlines())


SLEEPERS = """
in_sandbox=$1; shift
for name; do setsid setpriv --clear-groups --reuid "$name" sleep 99887 & done
# What a build does with signals is its own, and so is its process namespace.
setsid unshare --pid --fork setpriv --clear-groups --reuid "$in_sandbox" \\
  sh -c 'trap "" TERM; sleep 99887; :' &
until [ "$(cat /proc/[0-9]*/cmdline | grep -az -c '^99887$')" = $(($# + 1)) ]; do sleep 0.1; done
"""


def test_all_that_is_ours_is_ended() -> None:
    """Of each account, of a further trust domain's, and in a sandbox; and nobody else's."""
    with installed(begun=False) as system:
        system.run("useradd", "--system", "--user-group", "ib-build-other")
        block = system.sh("grep ^ib-build-untrusted: /etc/subuid | tail -n 1").split(":")
        last = int(block[1]) + int(block[2]) - 1
        others = ("daemon", str(last + 1))
        ours = (*ACCOUNTS, "ib-build-other", str(last))
        system.sh(f"({SLEEPERS}) >/dev/null 2>&1", str(last), *ours, *others)
        done = system.run("sh", TOP / "debian/invirtibuilder.prerm", "remove", check=False)
        assert done.code == 0, done.err.decode()
        users = system.sh("ps axo user:20,args | sed -n 's/ *sleep 99887$//p'").splitlines()
        assert sorted(users) == sorted(others)


def test_nothing_is_left() -> None:
    with installed(begun=False) as system:
        system.sh(PLAIN + USED, LOGS)
        purge(system)
        assert left(system) == set()
        assert accounts(system) == set()


def test_mount_points_are_emptied() -> None:
    with installed(begun=False) as system:
        system.sh(USED, LOGS)
        purge(system)
        assert left(system) == {str(SITE), "/var/lib/ib-sign", *(f"/var/lib/{w}" for w in WORKERS)}
        # Whose the mounted directories are.
        assert accounts(system) == set(ACCOUNTS)


def test_what_is_not_ours_is_kept() -> None:
    """Links of the administrator's, a directory that one leads to, an audit, and other logs."""
    with installed(begun=False) as system:
        system.sh(PLAIN)
        move = 'mv "/var/lib/$1" "/srv/$1"; ln -s "/srv/$1" "/var/lib/$1"'
        system.sh("mount -t tmpfs tmpfs /srv")
        for name in ("invirtibuilder", "ib-build", "ib-build-untrusted"):
            system.sh(move, name)
        system.sh(USED, LOGS)
        system.sh('touch "$1/audit/audit.jsonl" "$1/mine.log"; rmdir /var/lib/ib-sign', LOGS)
        system.sh("chown root /srv/ib-build-untrusted")
        purge(system)
        kept = {LOGS, f"{LOGS}/audit", f"{LOGS}/audit/audit.jsonl", f"{LOGS}/mine.log"}
        assert left(system) == kept | {f"/var/lib/{w}" for w in ("invirtibuilder", *WORKERS)}
        assert not list(system.path("/srv/ib-build").iterdir())
        assert system.path("/srv/ib-build-untrusted/slot-1/.base").exists()
        assert accounts(system) == set(ACCOUNTS)
        # With the links gone the audit alone keeps its account.
        system.sh("rm /var/lib/ib-build /var/lib/invirtibuilder")
        purge(system)
        assert accounts(system) == set(ACCOUNTS) - {"ib-build"}
        assert system.path(f"{LOGS}/audit/audit.jsonl").exists()
