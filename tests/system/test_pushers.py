"""Pushes over ssh to an account of their own: what it can do, and what a hostile one cannot."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from invirtibuilder.run import Done, run
from tests.support import sshd
from tests.support.gitwork import Work
from tests.support.installed import SITE, TOP, Installed, installed

pytestmark = pytest.mark.root

FRAGMENT = TOP / "conf/ssh/invirtibuilder-git.conf"
# As an administrator would who lets everything in; without PAM a locked account is refused.
LINES = "AcceptEnv GIT_* LD_* PYTHON*\n" + FRAGMENT.read_text()
KEEP = ("git", f"--git-dir={SITE}/packages/hello.git", "update-ref")
HELLO = SITE / "packages/hello.git"
SPARE = SITE / "packages/spare.git"


@pytest.fixture(scope="module")
def system() -> Iterator[Installed]:
    with installed() as made:
        made.run("usermod", "-p", "*", "ib-git")
        made.run("mkdir", "-p", "/run/sshd")
        made.run("mkdir", "-m", "1777", "/run/hostile")
        for name in ("hello", "spare"):
            made.cli("root", "package", "create", name)
        made.sh(OURS, SPARE, "invirtibuilder")
        made.run("cp", "-a", SPARE, "/run/hostile")
        yield made


@pytest.fixture(scope="module")
def door(system: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Sshd]:
    folder = tmp_path_factory.mktemp("ssh") / "sshd"
    with sshd.running(folder, lines=LINES, before=system.argv(), user="ib-git") as made:
        keys = system.path("/etc/invirtibuilder/git-keys")
        keys.write_text((folder / "client.pub").read_text())
        yield made


@pytest.fixture
def work(door: sshd.Sshd, tmp_path: Path) -> Work:
    ssh = {"GIT_SSH_COMMAND": door.ssh}
    return Work.init(tmp_path / "work", door.url(Path("/packages/hello.git")), ssh)


def refs(system: Installed, repository: Path = HELLO) -> dict[str, str]:
    """All refs, as the daemon's account sees them."""
    argv = ("git", f"--git-dir={repository}", "for-each-ref", "--format=%(refname) %(objectname)")
    lines = as_account(system, "invirtibuilder", *argv).text.splitlines()
    return dict(line.split(" ") for line in lines)


def as_account(system: Installed, name: str, *words: str | Path, check: bool = True) -> Done:
    ids = (f"--reuid={name}", f"--regid={name}", "--init-groups")
    return system.run("setpriv", *ids, *words, check=check)


def test_what_a_pusher_may(system: Installed, work: Work, door: sshd.Sshd) -> None:
    """All that git does in a day, beside what the daemon does, in turn with it."""
    work.commit("one")
    for spec in ("main", "main:deep/er", "main:refs/notes/x", "main:refs/tags/upstream/1"):
        assert work.push(spec).code == 0, spec
    old, new = HELLO / "objects/tmp_objdir-incoming-old", HELLO / "objects/tmp_objdir-incoming-new"
    as_account(system, "ib-git", "mkdir", "-m", "700", old, old / "pack", new)
    as_account(system, "ib-git", "touch", "-d", "2 days ago", old)
    for message in ("two", "three"):
        head = work.commit(message)
        assert work.push("main", "main:deep/er").code == 0
        # What the daemon does in between: its own refs and objects, and packing.
        as_account(system, "invirtibuilder", *KEEP, "refs/invirtibuilder/dev/1.0", head)
        as_account(system, "invirtibuilder", *KEEP, f"refs/tags/debian/{message}", head)
        as_account(system, "invirtibuilder", "git", f"--git-dir={HELLO}", "gc", "-q")
    assert work.push(":deep/er").code == 0
    # What a killed push has left goes with a later one.
    assert (system.path(old).exists(), system.path(new).exists()) == (False, True)
    found = refs(system)
    assert {name for name, oid in found.items() if oid == head} == {
        "refs/heads/main",
        "refs/invirtibuilder/dev/1.0",
        "refs/site/HEAD",
        "refs/tags/debian/three",
    }
    assert "refs/heads/deep/er" not in found
    fetched = work.git("ls-remote", "--symref", "origin").text
    assert "ref: refs/heads/main\tHEAD" in fetched
    assert "refs/site" not in fetched
    assert work.git("ls-remote", door.url(Path("/superproject.git"))).code == 0
    work.git("clone", "--quiet", work.git("remote", "get-url", "origin").text, "again")
    assert (work.path / "again/file").read_text() == "three\n"
    # The hook is the site's: an older commit of a version tag, and a ref of the site's own.
    refused = work.push(f"{head}:refs/tags/debian/9.9", f"{head}:refs/invirtibuilder/dev/9.9")
    assert b"version tags are made when a pocket publishes" in refused.err
    assert refs(system) == found


MARK = "/run/hostile/mark"
"""What a pusher's program would make."""
EVIL = "/run/hostile/evil.git"

ASKED = {
    "a program": f"touch {MARK}",
    "a word after it": f"git-upload-pack '/packages/hello.git'; touch {MARK}",
    "a word before it": f"touch {MARK}; git-receive-pack '/packages/hello.git'",
    "a substitution": f"git-receive-pack '$(touch {MARK})'",
    "a substitution that is not quoted": f"git-receive-pack $(touch {MARK})",
    "a quote in the path": f"git-upload-pack 'x'\\''; touch {MARK}; '",
    "a second line": f"git-upload-pack '/packages/hello.git'\ntouch {MARK}",
    "an option": f"git-upload-pack --upload-pack='touch {MARK}' '/packages/hello.git'",
    "an option as the path": f"git-upload-pack '--exec=touch {MARK}'",
    "another repository": f"git-receive-pack '{EVIL}'",
    "another repository, from here": f"git-upload-pack '/packages/../../../..{EVIL}'",
    "another program of git's": f"git -c alias.x='!touch {MARK}' x",
    "an archive": "git-upload-archive '/packages/hello.git'",
    "an editor": f"git-shell -c 'touch {MARK}'",
    "a copy": f"scp -t {MARK}",
    "a shell": "",
    "the superproject": "git-receive-pack '/superproject.git'",
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_sshd_starts_nothing_else(system: Installed, door: sshd.Sshd, asked: str) -> None:
    argv = [*door.argv("client"), f"-p{door.port}", "ib-git@127.0.0.1"]
    done = run([*argv, "--", asked] if asked else argv, check=False, timeout=60)
    assert (done.code, b"refused: " in done.err) != (0, False)
    assert done.code not in (0, 255), done.err.decode()
    assert not system.path(MARK).exists()


def test_those_words_would_have_done_it(system: Installed) -> None:
    """The control: what a shell would have made of them."""
    system.sh(
        'git init -q --bare "$1"; printf "#!/bin/sh\\ntouch %s\\n" "$2" >"$1/hooks/pre-receive"'
        ' && chmod 755 "$1/hooks/pre-receive" && chown -R ib-git "$1"',
        *(EVIL, MARK),
    )
    done = 0
    for asked in (words for words in ASKED.values() if MARK in words and words[:3] != "scp"):
        system.run("rm", "-f", MARK)
        as_account(system, "ib-git", "bash", "-c", asked, check=False)
        done += system.path(MARK).exists()
    assert done >= 6
    system.run("rm", "-f", MARK)


HOSTILE = {
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "core.hooksPath",
    "GIT_CONFIG_VALUE_0": f"{EVIL}/hooks",
    "GIT_CONFIG_PARAMETERS": f"'core.hooksPath'='{EVIL}/hooks'",
    "GIT_CONFIG_GLOBAL": f"{EVIL}/more",
    "GIT_EXEC_PATH": f"{EVIL}/hooks",
    "GIT_TRACE": MARK,
    "GIT_ALTERNATE_OBJECT_DIRECTORIES": f"{EVIL}/objects",
    "GIT_OBJECT_DIRECTORY": f"{EVIL}/objects",
    "GIT_DIR": EVIL,
    "GIT_PROTOCOL": "version=2:x",
    "PYTHONPATH": EVIL,
}


def test_the_environment_of_a_client(system: Installed, work: Work, door: sshd.Sshd) -> None:
    """What sshd lets through of a client's environment git does not get."""
    work.commit("hostile environment")
    options = " ".join(f"-oSendEnv={name}" for name in HOSTILE)
    sent = {"GIT_SSH_COMMAND": f"env {shlex.join(f'{k}={v}' for k, v in HOSTILE.items())} "}
    sent["GIT_SSH_COMMAND"] += f"{door.ssh} {options}"
    assert replace(work, env=sent).push("main:environment").code == 0
    assert not system.path(MARK).exists()
    assert refs(system)["refs/heads/environment"] == work.head
    # The control: git itself obeys each of these.
    words = ("git", "-c", f"safe.directory={EVIL}", "rev-parse", "--git-dir")
    env = {name: HOSTILE[name] for name in ("GIT_TRACE", "GIT_DIR")}
    assert run(system.argv(*words), env=env).text == EVIL
    assert system.path(MARK).exists()
    system.run("rm", "-f", MARK)


ODD = {
    "refs/site/HEAD": "only branches, tags and notes",
    "refs/invirtibuilder/dev/6.6": "only branches, tags and notes",
    "refs/replace/{head}": "only branches, tags and notes",
    "refs/heads/../../config": "",
    "refs/../config": "",
    "refs/heads/a.lock": "",
    "HEAD": "",
    "config": "",
    "hooks/post-update": "",
    "refs/tags/debian/6.6": "version tags are made when",
}


@pytest.mark.parametrize("ref", ODD)
def test_refs_that_nobody_pushes(system: Installed, work: Work, ref: str) -> None:
    head = work.commit("odd refs")
    before, config = refs(system), system.path(HELLO / "config").read_bytes()
    name = ref.format(head=head)
    # git's own client refuses some of these: the protocol is spoken by hand.
    done = _receive(system, work, name, head)
    assert ODD[ref].encode() in done
    assert b"ng " in done or b"refused" in done or b"unpack ok" not in done
    assert refs(system) == before
    assert system.path(HELLO / "config").read_bytes() == config


def _receive(system: Installed, work: Work, ref: str, head: str) -> bytes:
    """What git-receive-pack says, started as sshd does, of a push of this ref."""
    line = f"{'0' * 40} {head} {ref}\0 report-status\n".encode()
    pack = work.git("pack-objects", "--stdout", "--revs", "-q", stdin=f"{head}\n".encode()).out
    argv = ("env", "SSH_ORIGINAL_COMMAND=git-receive-pack '/packages/hello.git'", "setpriv")
    ids = ("--reuid=ib-git", "--regid=ib-git", "--init-groups")
    start = ("/usr/bin/python3", "-I", "-m", "invirtibuilder.door.gitshell")
    words = system.argv(*argv, *ids, *start)
    done = run(words, stdin=b"%04x%s0000%s" % (len(line) + 4, line, pack), check=False, timeout=60)
    return done.out + done.err


def test_odd_names_are_only_names(system: Installed, work: Work) -> None:
    head = work.commit("odd names")
    names = [
        f"$(touch {MARK})",
        f"`touch {MARK}`",
        f"x;touch {MARK};",
        "--upload-pack=x",
        "%0a&|'\"",
    ]
    for name in (f"refs/heads/{each.replace(' ', '${IFS}')}" for each in names):
        assert b"ok " + name.encode() in _receive(system, work, name, head), name
        assert refs(system)[name] == head
        as_account(system, "invirtibuilder", *KEEP, "-d", name)
    assert not system.path(MARK).exists()


def _content(work: Work, **contents: str) -> str:
    """A commit of a package with files of a hostile pusher's."""
    changelog = "hello (1.0) bookworm; urgency=low\n\n  * x\n\n -- A <a@b.c>  " + DATE
    control = "Source: hello\nMaintainer: A <a@b.c>\n\nPackage: hello\nArchitecture: all\n"
    files = {"debian/changelog": changelog, "debian/control": control, **contents}
    for name, content in files.items():
        (work.path / name).parent.mkdir(parents=True, exist_ok=True)
        (work.path / name).write_text(content)
    work.git("add", "--all")
    work.git("commit", "--quiet", "-m", "hostile content")
    return work.head


DATE = "Sat, 31 Jan 2026 12:00:00 +0000\n"
SUBMODULE = f'[submodule "x"]\n\tpath = x\n\turl = ext::touch {MARK}\n\tupdate = !touch {MARK}\n'


def test_what_the_daemon_reads_runs_nothing(system: Installed, work: Work) -> None:
    """Attributes, hooks and submodules in what was pushed, which git can be told to run."""
    head = _content(
        work,
        **{
            ".gitattributes": "* filter=evil diff=evil merge=evil export-subst\n",
            ".gitmodules": SUBMODULE.replace(f"!touch {MARK}", "checkout"),
            "debian/gbp.conf": f"[DEFAULT]\npostclone = touch {MARK}\npristine-tar = True\n",
            "debian/source/format": "3.0 (native)\n",
        },
    )
    work.git("update-index", "--add", "--cacheinfo", f"160000,{head},x")
    work.git("commit", "--quiet", "-m", "a submodule")
    assert work.push("--force", "main:content").code == 0
    done = system.cli("invirtibuilder", "check", "dev", "hello", "content", check=False)
    assert done.code in (0, 3), done.err.decode()
    assert not system.path(MARK).exists()
    # The control: a clone that is told to do all that it is asked for.
    url = work.git("remote", "get-url", "origin").text
    local = ("-c", "protocol.ext.allow=always", "-c", f"filter.evil.smudge=touch {MARK}")
    argv = ("git", *local, "clone", "-q", "-b", "content", "--recurse-submodules", url, "again")
    system.run(
        "sh", "-c", 'cd "$1" && shift && "$@"', "sh", work.path, *argv, check=False, env=work.env
    )
    assert system.path(MARK).exists()
    system.run("rm", "-f", MARK)


@pytest.mark.parametrize(
    ("name", "mode", "content"),
    [
        (".git", "040000", ""),
        (
            ".gitmodules",
            "100644",
            f'[submodule "x"]\n\tpath = x\n\turl = --upload-pack=touch {MARK}\n',
        ),
        (".gitmodules", "100644", SUBMODULE),
        (".gitmodules", "120000", "/etc/passwd"),
        ("..", "040000", ""),
    ],
)
def test_objects_are_checked(
    system: Installed, work: Work, name: str, mode: str, content: str
) -> None:
    before = refs(system)
    empty = work.git("mktree", stdin=b"").text
    oid = work.object("blob", content.encode()) if content else empty
    tree = work.object("tree", f"{mode.lstrip('0')} {name}\0".encode() + bytes.fromhex(oid))
    head = work.git("commit-tree", tree, "-m", "x").text
    done = work.push(f"{head}:refs/heads/objects")
    assert (done.code, b"unpacker error" in done.err) == (1, True), done.err.decode()
    assert refs(system) == before


SUBVERTED = {
    "its configuration": "echo '[core]' >>$1/config",
    "another configuration": "echo x >$1/.config && mv -f $1/.config $1/config",
    "a hook": "echo x >$1/hooks/post-update",
    "our hook": "chmod 755 $1/hooks/pre-receive && mv -f $1/hooks/pre-receive $1/hooks/x",
    "where its objects are": "echo /tmp >$1/objects/info/alternates",
    "where everything is": "echo /tmp >$1/commondir",
    "grafts": "echo x >$1/info/grafts",
    "attributes": "echo x >$1/info/attributes",
    "a border of history": "echo x >$1/shallow",
    "HEAD": "echo 'ref: refs/heads/x' >$1/.h && mv -f $1/.h $1/HEAD",
    "the branch of clones": "echo 'ref: refs/heads/x' >$1/refs/site/HEAD",
    "a ref of ours": "mkdir -p $1/refs/invirtibuilder/dev && echo x >$1/refs/invirtibuilder/dev/2",
    "a ref of ours in the way": "rm -r $1/refs/invirtibuilder",
    "a version tag": "rm -f $1/refs/tags/debian/two",
    "all version tags": "mv $1/refs/tags/debian $1/refs/tags/x",
    "another version tag": "cd $1/refs/tags && echo x >$$ && mv -f $$ debian/two",
    "packed refs": "cd $1/packed && echo x >$$ && mv -f $$ packed-refs",
    "where packed refs are": "ln -sfn /tmp $1/packed-refs",
    "an object of ours": "rm -f $1/objects/??/*",
    "all objects of ours": "mv $1/objects/pack $1/objects/x",
    "a pack of ours": "rm -f $1/objects/pack/*",
}


@pytest.mark.parametrize("script", SUBVERTED.values(), ids=SUBVERTED)
def test_an_account_that_was_taken_over(system: Installed, script: str) -> None:
    """With a program of its own as the pushing account one gets no further than with pushes."""
    system.run("rm", "-rf", SPARE)
    system.run("cp", "-a", "/run/hostile/spare.git", SPARE)
    before = system.sh(LISTED, SPARE)
    as_account(system, "ib-git", "sh", "-euc", script, "sh", SPARE, check=False)
    assert system.sh(LISTED, SPARE) == before
    # The control: the daemon's own account can do just that.
    as_account(system, "invirtibuilder", "sh", "-euc", script, "sh", SPARE)
    assert system.sh(LISTED, SPARE) != before


OURS = """
cd "$1"
as="setpriv --reuid=$2 --regid=$2 --init-groups"
oid=$($as git --git-dir="$1" hash-object -w --stdin </dev/null)
$as git --git-dir="$1" update-ref refs/tags/debian/two "$oid"
$as git --git-dir="$1" update-ref refs/invirtibuilder/dev/1.0 "$oid"
echo x | $as git --git-dir="$1" pack-objects -q objects/pack/pack </dev/null
"""
LISTED = """
cd "$1"
find . ! -type d \\( -user invirtibuilder -o ! -path "./refs/*" ! -path "./packed/*" \\
    ! -path "./objects/*" \\) -printf '%p %s %l %u\\n' | sort
find . -type f -user invirtibuilder -exec sha256sum {} + | sort
"""


CLOSED = {
    "its requests": "ls {site}/queue/new",
    "a request": "echo x >{site}/queue/new/x",
    "a job": "mkdir {site}/jobs/x",
    "an archive's database": "ls {site}/archive/dev/private",
    "a keyring": "ls {site}/gnupg",
    "what everybody installs": "echo x >{site}/archive/dev/x",
    "what the doors believe": "echo x >{site}/run/door.json",
    "what hooks believe": "echo x >{site}/run/push-rules.json",
    "the record": "echo x >{site}/superproject.git/refs/heads/dev",
    "the configuration": "echo x >>/etc/invirtibuilder/invirtibuilder.yaml",
    "whose keys may push": "echo x >>/etc/invirtibuilder/git-keys",
    "a package": "mkdir {site}/packages/other.git",
    "a package's name": "mv {site}/packages/hello.git {site}/packages/other.git",
}


@pytest.mark.parametrize("script", CLOSED.values(), ids=CLOSED)
@pytest.mark.parametrize("account", ["ib-git", "ib-build-untrusted", "ib-notify"])
def test_what_is_closed_to_others(system: Installed, account: str, script: str) -> None:
    words = ("sh", "-euc", script.format(site=SITE))
    assert as_account(system, account, *words, check=False).code != 0


def test_git_is_closed_to_whom_it_does_not_concern(system: Installed) -> None:
    """What is not published is read by those who push, and by the daemon."""
    for account in ("ib-submit", "ib-build", "ib-build-untrusted", "ib-notify", "ib-sign"):
        assert as_account(system, account, "ls", SITE / "packages", check=False).code != 0
    assert as_account(system, "ib-git", "ls", SITE / "packages").text.split() == [
        "hello.git",
        "spare.git",
    ]
