"""AppArmor and SELinux: their tools take what we ship, which allows what our programs really do."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from invirtibuilder.run import CLEAN, Done, run
from tests.support import packages
from tests.support.apparmor import Profile, profile
from tests.support.cannedworker import CannedWorker
from tests.support.installed import SITE, Installed, installed
from tests.support.place import until
from tests.support.repository import TOP
from tests.support.units import units

APPARMOR = TOP / "debian/apparmor.d"
SELINUX = TOP / "debian/selinux"
PROFILES = {
    "invirtibuilder-daemon": ("daemon", "fsck", "gc", "base-refresh"),
    "invirtibuilder-door": ("door-*",),
}
"""Each with the names of the traces of what it is for."""
LOOKS = "newfstatat|l?stat|f?access(?:at2?)?|readlink(?:at)?|statfs|chdir|getcwd|statx"
CALLS = re.compile(rf"^\d+ +(?!(?:{LOOKS})\()(\w+)\((.*)\) += \d")
DOOR = "/usr/share/invirtibuilder/remctl/build"
Rule = tuple[str, str, str, str]
"""Who, what, the class of that, and what may be done."""
DOOR_STARTS = """
    FROM invirtibuilder_door_exec_t process invirtibuilder_door_t;
    FROM invirtibuilder_door_t process transition;
    FROM invirtibuilder_door_t process2 nnp_transition nosuid_transition;
    invirtibuilder_door_t FROM fd use;
    invirtibuilder_door_t FROM unix_stream_socket getattr read write ioctl"""
NEEDED = {
    "the manager starts the daemon, in spite of NoNewPrivileges": """
        init_t invirtibuilder_t process transition;
        init_t invirtibuilder_t process2 nnp_transition nosuid_transition;
        invirtibuilder_t bin_t file entrypoint execute map read""",
    "the daemon's output goes to the journal": """
        invirtibuilder_t init_t fd use;
        invirtibuilder_t init_t unix_stream_socket getattr read write ioctl""",
    "it tells the manager that it is ready": """
        invirtibuilder_t init_runtime_t sock_file write;
        invirtibuilder_t init_t unix_dgram_socket sendto""",
    "the nightly check's output goes to a file of the manager's": """
        invirtibuilder_t invirtibuilder_runtime_t file append write getattr ioctl""",
    "the daemon asks signer, notifier and workers": """
        invirtibuilder_t invirtibuilder_runtime_t sock_file write;
        invirtibuilder_t initrc_t unix_stream_socket connectto""",
    "the daemon starts git and gpg with a file in memory, and APT, which starts dpkg": """
        invirtibuilder_t invirtibuilder_tmpfs_t file read write create getattr ioctl;
        invirtibuilder_t apt_exec_t file execute execute_no_trans map;
        invirtibuilder_t apt_var_cache_t file read map;
        invirtibuilder_t dpkg_exec_t file execute execute_no_trans map""",
    "remctld starts the door, in spite of NoNewPrivileges": DOOR_STARTS.replace("FROM", "initrc_t"),
    "sshd reads the keys of who may come in": """
        sshd_t invirtibuilder_conf_t dir search;
        sshd_t invirtibuilder_conf_t file open read getattr""",
    "remctl-shell of sshd starts the door": DOOR_STARTS.replace("FROM", "unconfined_t"),
}
"""What has to be in the module, as `source target class permissions` each."""


def parsed(path: Path) -> Done:
    return run(["apparmor_parser", "-Q", "-K", path], check=False)


@pytest.mark.parametrize("name", PROFILES)
def test_apparmor_parser_takes_it(name: str, tmp_path: Path) -> None:
    done = parsed(APPARMOR / name)
    assert done.code == 0, done.err.decode()
    broken = tmp_path / name
    broken.write_text((APPARMOR / name).read_text().replace("  unix,", "  unicorn,"))
    assert parsed(broken).code != 0


def compiled(folder: Path) -> Done:
    """m4, checkmodule and semodule_package, as the policy's own Makefile calls them."""
    argv = ["make", "-f", "/usr/share/selinux/devel/Makefile", "invirtibuilder.pp"]
    return run(argv, cwd=folder, check=False)


def test_the_selinux_module_compiles(tmp_path: Path) -> None:
    folder = tmp_path / "selinux"
    shutil.copytree(SELINUX, folder)
    done = compiled(folder)
    assert done.code == 0, done.out.decode() + done.err.decode()
    assert (folder / "invirtibuilder.pp").stat().st_size > 1000
    source = folder / "invirtibuilder.te"
    source.write_text(source.read_text().replace("invirtibuilder_queue_t;", "nonesuch_t;", 1))
    assert compiled(folder).code != 0


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> set[Rule]:
    """All that the compiled module allows, permission by permission."""
    folder = tmp_path_factory.mktemp("policy") / "selinux"
    shutil.copytree(SELINUX, folder)
    assert compiled(folder).code == 0
    text = run(["/usr/libexec/selinux/hll/pp", folder / "invirtibuilder.pp"]).text
    found = re.findall(r"\(allow (\S+) (\S+) \((\S+) \(([^()]*)\)\)\)", text)
    assert len(found) > 100
    allowed = {(of, to, kind, word) for of, to, kind, words in found for word in words.split()}
    # A transition is no permission: what the new process is when nobody asks for a domain.
    moves = re.findall(r"\(typetransition (\S+) (\S+) process (\S+)\)", text)
    return allowed | {(of, to, "process", made) for of, to, made in moves}


@pytest.mark.parametrize("needed", NEEDED)
def test_the_module_allows(needed: str, rules: set[Rule]) -> None:
    for line in NEEDED[needed].split(";"):
        source, target, kind, *words = line.split()
        assert {(source, target, kind, word) for word in words} - rules == set()


def test_the_module_does_not_allow(rules: set[Rule]) -> None:
    """To run what was written, to write what is another's, a network, or a capability."""
    ours = ("invirtibuilder_t", "invirtibuilder_door_t")
    kinds = ("var_lib", "queue", "tmp", "runtime", "conf")
    written = {f"invirtibuilder_{kind}_t" for kind in kinds}
    allowed = {rule for rule in rules if rule[0] in ours}
    runs = ("execute", "execute_no_trans", "entrypoint", "execmod")
    assert not [rule for rule in allowed if rule[1] in written and rule[3] in runs]
    assert not [rule for rule in allowed if rule[2] in ("capability", "capability2")]
    changes = ("write", "append", "create", "unlink", "rename", "setattr")
    changed = {rule[:2] for rule in allowed if rule[2] == "file" and rule[3] in changes}
    door = "invirtibuilder_door_t"
    assert (door, "invirtibuilder_var_lib_t") not in changed
    assert not [rule for rule in changed if rule[1] == "invirtibuilder_conf_t"]


def test_units_and_policies_speak_of_the_same() -> None:
    """Sockets, the site's directory and names."""
    allowed = profile(APPARMOR / "invirtibuilder-daemon")
    contexts = (SELINUX / "invirtibuilder.fc").read_text()
    for unit in units().values():
        for path in unit.all("Socket.ListenStream"):
            if path[0] == "/":
                assert allowed.allows(path.replace("%i", "trusted"), "w")
                assert f"{Path(path).parent}(/.*)?" in contexts
        if name := unit.one("Service.AppArmorProfile"):
            command = unit.all("Service.ExecStart")[1:]
            assert "-".join(command) in PROFILES[name[1:]], "nobody looks at its trace"
            assert f"profile {name[1:]} " in (APPARMOR / name[1:]).read_text()
            for path in unit.all("Service.ReadWritePaths"):
                assert allowed.allows(f"{path}/run/x", "w")
                assert f"{path}(/.*)?" in contexts
        if context := unit.one("Service.SELinuxContext"):
            policy = (SELINUX / "invirtibuilder.te").read_text()
            assert f"type {context.split(':')[2]};" in policy
    for denied in ("/etc/shadow", "/var/lib/ib-sign/gnupg/x", "/home/x", "/root/.ssh/id"):
        assert not allowed.allows(denied, "r"), denied
    for never in (f"{SITE}/jobs/x", "/tmp/x", "/usr/bin/curl", "/bin/sh", "/usr/bin/dash"):
        assert not allowed.allows(never, "x"), never


def accesses(trace: Path) -> set[tuple[str, str]]:
    """Paths of a trace with what was done to each: all that came about."""
    found: set[tuple[str, str]] = set()
    for line in trace.read_text(errors="replace").splitlines():
        if (call := CALLS.match(line)) is None:
            continue
        paths = [path for path in re.findall(r'"(/[^"]*)"', call[2]) if ".." not in path]
        if call[1] == "execve":
            found |= {(path, "x") for path in paths[:1]}
        elif call[1] in ("open", "openat"):
            if "O_PATH" not in call[2]:
                wrote = "O_WRONLY" in call[2] or "O_CREAT" in call[2] or "O_TRUNC" in call[2]
                found |= {(path, "w" if wrote else "r") for path in paths}
                found |= {(path, "w") for path in paths if "O_RDWR" in call[2]}
        elif call[1] in ("link", "linkat"):
            found |= {(path, "l") for path in paths[1:]}
        elif call[1] in ("symlink", "symlinkat"):
            found |= {(path, "w") for path in paths[-1:]}
        elif call[1] != "inotify_add_watch":
            found |= {(path, "w") for path in paths}
    return found


def traced(system: Installed, account: str, trace: Path, *argv: str) -> list[str]:
    """The words that run a command as an account and write down what it does with files."""
    ids = (f"--reuid={account}", f"--regid={account}", "--init-groups")
    calls = ("-e", "trace=%file,execve,connect,bind")
    words = ("env", "-i", "PATH=/usr/bin:/bin", "HOME=/nonexistent", "REMCTL_COMMAND=build")
    user = ("REMOTE_USER=unix/root", "setpriv", *ids)
    return system.argv(*words, *user, "strace", "-f", "-qq", *calls, "-o", trace, *argv)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the daemon, what timers start, and a door do with files while a package is published."""
    with installed() as system, contextlib.ExitStack() as stack:
        folder = system.disk / "traces"
        folder.mkdir()
        folder.chmod(0o1777)
        system.services("start", "signer")
        for name in ("trusted", "untrusted"):
            path = system.path(f"/run/invirtibuilder/worker-{name}.sock")
            stack.enter_context(CannedWorker(path).serving())
            path.chmod(0o666)
        shutil.copytree(TOP / "conf/remctl", system.path(Path(DOOR).parent))
        system.run(
            *("make", "-f", TOP / "debian/rules", "execute_after_dh_install"),
            "SHARE=/usr/share/invirtibuilder",
            check=False,
        )
        program = "/usr/bin/invirtibuilder"
        trace = folder / "base-refresh"
        queued = run(traced(system, "invirtibuilder", trace, program, "base", "refresh"))
        for job in queued.text.split():
            # Nobody here makes bases.
            system.path(f"{SITE}/queue/new/{job}.json").unlink()
        with (folder / "log").open("wb") as log:
            argv = traced(system, "invirtibuilder", folder / "daemon", program)
            daemon = subprocess.Popen(
                [*argv, "daemon"], env=CLEAN, stdin=subprocess.DEVNULL, stderr=log
            )
        try:
            until(lambda: "ready" in (folder / "log").read_text())
            repo = packages.native(system.disk / "hello", "hello", "1.0")
            system.run(program, "package", "create", "hello", "--from", repo.path)
            system.run(program, "submit", "staging", "hello", repo.commit, "--wait")
            for name in ("fsck", "gc"):
                run(traced(system, "invirtibuilder", folder / name, program, name))
            for number, words in enumerate(
                (("help",), ("queue",), ("status",), ("submit", "dev", "hello", repo.commit))
            ):
                run(traced(system, "ib-submit", folder / f"door-{number}", DOOR, *words))
            # The same submission is the same job: with its end nothing is left to be done.
            system.run(program, "submit", "dev", "hello", repo.commit, "--wait")
            yield folder
        finally:
            system.run("pkill", "-TERM", "-f", "^/usr/bin/python3 /usr/bin/invirtibuilder daemon$")
            daemon.wait(60)


@pytest.mark.root
@pytest.mark.parametrize("name", PROFILES)
def test_what_they_do_is_allowed(name: str, traces: Path) -> None:
    done = set[tuple[str, str]]()
    for program in PROFILES[name]:
        found = [accesses(path) for path in traces.glob(program)]
        done = done.union(*found)
        assert len(found[0]) > 50
    allowed = profile(APPARMOR / name)
    started = {("/usr/bin/invirtibuilder", "x"), (DOOR, "x")}  # the one that the profile is of
    assert refused(allowed, done - started) == []


def refused(allowed: Profile, done: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """What would not have come about; directories are asked for with a slash."""
    return sorted(
        (path, letter)
        for path, letter in done
        if not allowed.allows(path, letter)
        and not allowed.allows(f"{path.rstrip('/')}/", letter)
        # Python of the tests' own machine, and its packages outside of Debian's.
        and not path.startswith(("/usr/local/", "/sys/", "/proc/"))
    )
