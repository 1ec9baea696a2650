"""The command line: the real `main()`, here and in processes, on a site that `init` made."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from invirtibuilder.cli.main import COMMANDS, command, main
from invirtibuilder.errors import Exit
from invirtibuilder.run import run
from invirtibuilder.states import State
from tests.support import cannedworker, packages
from tests.support import place as places
from tests.support.packages import Repo
from tests.support.place import ROOT, Place, until

JOB = "20260102T030405.678901-abcd"
VERBS = [
    ["init"],
    ["check-config"],
    ["daemon"],
    ["worker"],
    ["notifier"],
    ["signer"],
    ["check"],
    ["submit"],
    ["promote"],
    ["rollback"],
    ["status"],
    ["metrics"],
    ["log"],
    ["queue"],
    ["diff"],
    ["gc"],
    ["rebuild-state"],
    ["backup"],
    ["restore"],
    ["fsck"],
    ["self-check"],
    ["cancel"],
    ["retry"],
    ["pause"],
    ["resume"],
    ["pocket"],
    ["pocket", "list"],
    ["pocket", "show"],
    ["pocket", "create"],
    ["key"],
    ["key", "list"],
    ["key", "new"],
    ["package"],
    ["package", "list"],
    ["package", "create"],
    ["sources"],
    ["remote"],
    ["acl"],
    ["acl", "show"],
    ["acl", "explain"],
    ["acl", "compile"],
    ["acl", "test"],
    ["base"],
    ["base", "refresh"],
]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A site without a daemon, which tests may add to."""
    with places.place() as made:
        yield made


@pytest.fixture
def own() -> Iterator[Place]:
    """A site for one test."""
    with places.place() as made:
        yield made


@pytest.fixture(scope="module")
def repo(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Repo:
    made = packages.native(tmp_path_factory.mktemp("repo") / "greet")
    place.package(made)
    return made


def call(place: Place, *args: str) -> tuple[int, str, str]:
    """`main()` in this process: exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(["--config", str(place.config), *args])
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


def test_every_subcommand_is_here() -> None:
    assert set(COMMANDS) == {words[0] for words in VERBS}
    assert [command(name).name for name in COMMANDS] == list(COMMANDS)


IMPORTED = """
import sys, invirtibuilder.cli.main
try: invirtibuilder.cli.main.main(sys.argv[1:])
finally: print(*sys.modules)
"""


def test_only_what_is_called_is_imported() -> None:
    heavy = {"git", "debian", "inotify_simple", "seccomp", "gssapi", "invirtibuilder.daemon"}
    for words in (["remote", "--help"], ["--json", "--config", "x", "remote", "h", "log", "-h"]):
        done = run([sys.executable, "-c", IMPORTED, *words], cwd=ROOT, check=False)
        assert "usage: " in done.text
        assert not heavy & set(done.text.split()), words


def test_help_and_mistakes_are_about_all_subcommands(place: Place) -> None:
    for words in (["--help"], ["-h", "remote"], ["--json", "--help"]):
        code, out, _ = call(place, *words)
        assert code == 0
        assert set(COMMANDS) <= set(out.split())
    code, _, err = call(place, "nonsense")
    assert code == 64
    assert all(repr(name) in err for name in COMMANDS)
    assert call(place)[0] == call(place, "--nonsense", "remote")[0] == 64


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_help_and_usage(place: Place, words: list[str]) -> None:
    code, out, _ = call(place, *words, "--help")
    assert code == 0
    assert "--json" in out
    assert "--config" in out
    code, out, err = call(place, *words, "--no-such-option")
    assert (code, out) == (Exit.USAGE, "")
    assert "usage:" in err


def test_the_programs_own_words(place: Place) -> None:
    assert call(place)[0] == Exit.USAGE
    assert call(place, "nonsense")[0] == Exit.USAGE
    assert re.fullmatch(r"invirtibuilder [0-9.]+\n", call(place, "--version")[1])
    # As a module, and by the environment's configuration.
    env = {"INVIRTIBUILDER_CONFIG": str(place.config)}
    python = [str(ROOT / ".venv/bin/python"), "-m", "invirtibuilder"]
    done = run([*python, "check-config"], cwd=ROOT, env=env)
    assert done.text == f"{place.config}: 3 pockets: dev, staging, prod"


BROKEN = [
    ["check-config"],
    ["daemon", "--drain"],
    ["notifier", "--listen", "socket"],
    ["signer", "--listen", "socket"],
    ["check", "staging", "greet", "main"],
    ["submit", "staging", "greet", "main"],
    ["promote", "staging", "prod", "greet"],
    ["rollback", "dev", "2026-01-31"],
    ["status"],
    ["status", JOB],
    ["status", "--site"],
    ["metrics"],
    ["log", JOB],
    ["queue"],
    ["diff", "dev", "prod"],
    ["gc"],
    ["rebuild-state"],
    ["backup", "elsewhere"],
    ["restore", "elsewhere"],
    ["fsck"],
    ["self-check"],
    ["cancel", JOB],
    ["retry", JOB],
    ["pause"],
    ["resume", "dev"],
    ["pocket", "list"],
    ["pocket", "show", "dev"],
    ["pocket", "create", "new"],
    ["key", "list"],
    ["key", "new", "dev"],
    ["package", "list"],
    ["package", "create", "new"],
    ["sources", "dev"],
    ["acl", "show"],
    ["acl", "explain", "dev", "submit", "alice@R"],
    ["acl", "compile"],
    ["acl", "test", "nonesuch"],
    ["base", "refresh", "dev"],
]


@pytest.mark.parametrize("words", BROKEN, ids=" ".join)
def test_a_broken_configuration_over_every_command(own: Place, words: list[str]) -> None:
    own.edit("suite:", "suiet:")
    before = sorted(own.directory.rglob("*"))
    code, out, err = call(own, *words)
    assert (code, out) == (Exit.CONFIG, "")
    # Three pockets, each with an unknown key and a missing one.
    assert len(re.findall(rf"{re.escape(str(own.config))}:[0-9]+: ", err)) == 6
    assert sorted(own.directory.rglob("*")) == before
    code, out, _ = call(own, *words, "--json")
    assert code == Exit.CONFIG
    assert json.loads(out)["reasons"][0]["code"] == "config"
    own.config.unlink()
    code, out, err = call(own, *words)
    assert code == Exit.CONFIG
    assert "no such file" in err


def test_every_command_that_has_a_configuration_is_tried_with_a_broken_one() -> None:
    without = {"init", "worker", "remote"}
    assert {words[0] for words in BROKEN} == set(COMMANDS) - without


BAD = [
    (["check", "Dev", "greet", "main"], {"bad-pocket"}),
    (["check", "no-such", "greet", "main"], {"no-pocket"}),
    (["check", "no-such", "nobody", "main"], {"no-pocket", "no-package"}),
    (["check", "staging", "../greet", "main"], {"bad-package"}),
    (["check", "staging", "greet", "a..b"], {"bad-commit"}),
    (["check", "staging", "greet", "--", "-x"], {"bad-commit"}),
    (["check", "Dev", "../greet", "a..b"], {"bad-pocket", "bad-package", "bad-commit"}),
    (["submit", "Dev", "../greet", "a..b"], {"bad-pocket", "bad-package", "bad-commit"}),
    (["check", "staging", "greet", "nonesuch"], {"commit-unknown"}),
    (["promote", "Dev", "prod", "greet"], {"bad-pocket"}),
    (["promote", "dev", "prod", "../greet"], {"bad-package"}),
    (["rollback", "dev", "yesterday"], {"bad-moment"}),
    (["rollback", "dev", "2026-01-31", "--package", "A"], {"bad-package"}),
    (["status", "nonesuch"], {"no-job"}),
    (["log", "../../etc"], {"no-job"}),
    (["cancel", JOB], {"no-job"}),
    (["retry", JOB], {"no-job"}),
    (["pocket", "show", "nonesuch"], {"no-pocket"}),
    (["pocket", "create", "New"], {"bad-pocket"}),
    (["pocket", "create", "new", "--like", "nonesuch"], {"no-pocket"}),
    (["pocket", "create", "new", "--suite", "a b"], {"config"}),
    (["pocket", "create", "new", "--suite", "x\n  evil: {}"], {"config"}),
    (["package", "create", "New"], {"bad-package"}),
    (["package", "create", "new", "--from", "/nonexistent"], {"no-repository"}),
    (["sources", "nonesuch"], {"no-pocket"}),
    (["sources", "dev", "--at", "yesterday"], {"bad-moment"}),
    (["sources", "dev", "--at", "2026-01-31"], {"no-state"}),
    (["base", "refresh", "nonesuch"], {"no-pocket"}),
]


@pytest.mark.parametrize(("words", "codes"), BAD, ids=lambda value: " ".join(sorted(value))[:40])
def test_bad_input(place: Place, repo: Repo, words: list[str], codes: set[str]) -> None:
    assert repo.name == "greet"
    text = place.config.read_text()
    command, *rest = words
    code, out, err = call(place, command, "--json", *rest)
    answer = json.loads(out)
    assert {reason["code"] for reason in answer["reasons"]} == codes, answer
    assert answer["ok"] is False
    assert code in (Exit.REFUSED, Exit.DATA, Exit.NO_INPUT, Exit.CONFIG)
    assert len(re.findall("^(error|refused): ", err, re.M)) == len(codes)
    assert place.config.read_text() == text
    assert not any((place.directory / "queue/new").iterdir())
    assert not (place.directory / "packages/new.git").exists()


def test_check_without_a_daemon(place: Place, repo: Repo) -> None:
    code, out, err = call(place, "check", "staging", "greet", repo.commit[:8])
    assert (code, err) == (0, "the daemon is down: checked by this process\n")
    assert out == f"greet 1.0 ({repo.commit[:12]}) may go to staging\n"
    assert place.json("check", "dev", "greet", "main")["commit"] == repo.commit


def test_init_again_changes_nothing(own: Place) -> None:
    text, key = own.config.read_text(), own.site.signing.key
    done = own.cli("init", own.directory)
    assert done.code == 0
    assert b"is there already" in done.err
    assert (own.config.read_text(), own.site.signing.key) == (text, key)


def test_pockets(own: Place) -> None:
    listed = own.json("pocket", "list")
    assert [p["name"] for p in listed] == ["dev", "staging", "prod"]
    assert [p["allow_backtracking"] for p in listed] == [True, False, False]
    assert all(p["publication"] == 1 for p in listed)
    assert own.cli("pocket", "list").text.splitlines()[0].startswith("POCKET")
    shown = own.json("pocket", "show", "staging")
    assert shown["rules"]["acl"]["submit"] == [places.ME]
    assert shown["content"] == []
    text = own.cli("pocket", "show", "staging").text
    assert "pocket staging: publication 1" in text
    # In the configuration's words, not in Python's.
    for line in (
        "suite: bookworm",
        "components: main",
        "allow_backtracking: no",
        "trust_domain: trusted",
        "limits: time 1h, processes 5000, disk 32G, file_size 8G, log 1G, result 8G",
        f"may submit: {places.ME}",
        "version_suffix: ~{pocket}+{timestamp}.g{shortid}",
    ):
        assert f"  {line}\n" in text
    assert not re.search(r"[\[\]()']|None|True|False", text)


def test_a_new_pocket_keeps_the_configurations_comments_and_mode(own: Place) -> None:
    own.config.write_text("# by hand\n" + own.config.read_text() + "# the end\n")
    own.config.chmod(0o600)
    done = own.cli("pocket", "create", "hot", "--allow-backtracking", "--like", "staging")
    assert done.code == 0
    assert b"restart the daemon" in done.err
    text = own.config.read_text()
    assert text.startswith("# by hand\n")
    assert "# the end\n" in text
    assert "# A trust domain has its own worker" in text
    # Hooks' secrets may be in it.
    assert own.config.stat().st_mode & 0o777 == 0o600
    pocket = own.site.pockets["hot"]
    assert (pocket.allow_backtracking, pocket.domain) == (True, "untrusted")
    assert pocket.acl["submit"] == own.site.pockets["staging"].acl["submit"]
    assert own.json("pocket", "show", "hot")["publication"] == 1
    # Once more is fine, and adds nothing.
    assert own.cli("pocket", "create", "hot").code == 0
    assert own.config.read_text() == text


def test_packages(own: Place, tmp_path: Path) -> None:
    assert own.cli("package", "list").text == "no packages yet"
    repo = packages.native(tmp_path / "greet")
    made = own.json("package", "create", "greet", "--from", str(repo.path))
    assert made["path"] == str(own.directory / "packages/greet.git")
    assert own.cli("package", "create", "empty").code == 0
    listed = own.json("package", "list")
    assert [p["name"] for p in listed] == ["empty", "greet"]
    assert set(listed[0]) == {"name", "path", "url"}
    done = run(["git", "ls-remote", listed[1]["url"], "refs/heads/main"])
    assert done.text.split()[0] == repo.commit
    assert own.cli("package", "list").text.splitlines()[1].split()[0] == "greet"


def test_a_new_key_is_taken_over_with_both_signing(own: Place) -> None:
    (first,) = {k["fingerprint"] for k in own.json("key", "list")}
    made = own.json("key", "new", "dev")["fingerprint"]
    assert own.cli("key", "new", "no-such").code == Exit.NO_INPUT
    text = own.config.read_text()
    own.config.write_text(text.replace(f"key: {first}", f"key: {first}\n    also: [{made}]"))
    listed = [(k["signs"], k["fingerprint"], k["secret"]) for k in own.json("key", "list")]
    assert listed[:2] == [("first", first, True), ("also", made, True)]
    assert {k["pocket"] for k in own.json("key", "list")} == set(own.site.pockets)
    assert made in own.cli("key", "list").text
    own.config.write_text(own.config.read_text().replace(made, first))
    done = own.cli("check-config")
    assert done.code == Exit.CONFIG
    assert b"names a key twice" in done.err


@pytest.mark.root
def test_another_account_is_told_whose_site_it_is(own: Place) -> None:
    own.directory.parent.chmod(0o755)
    os.seteuid(65534)
    try:
        for words in (["package", "create", "greet"], ["daemon"], ["init", str(own.directory)]):
            code, _, err = call(own, *words)
            assert code == Exit.DENIED
            assert f"{own.directory} is root's, and you may not write there" in err
            assert "hint: run this as root" in err
        code, _, err = call(own, "base", "refresh", "dev")
        assert code == Exit.DENIED
        assert f"you may not write to {own.directory}/queue" in err
        # The stanza is for everybody: its key is not taken from the key ring.
        code, out, _ = call(own, "sources", "dev")
        assert (code, "BEGIN PGP PUBLIC KEY" in out) == (Exit.OK, True)
    finally:
        os.seteuid(0)


def test_sources(place: Place) -> None:
    text = place.cli("sources", "dev").text
    assert f"URIs: file:{place.directory}/archive/dev\n" in text
    assert "Suites: dev\nComponents: main\nSigned-By:\n" in text
    value = place.json("sources", "dev")
    lines = text.splitlines()
    assert [line for line in lines if line[0] != "#"] == value["sources"].splitlines()
    # The preferences stand there too, as a comment, so that the whole is a .sources file.
    comment = "\n".join(line[4:] for line in lines if line.startswith("#   "))
    assert comment == value["preferences"].rstrip("\n")
    assert place.cli("sources", "dev", "--preferences").text == value["preferences"].rstrip("\n")
    assert "Pin-Priority: 990" in value["preferences"]
    assert place.cli("sources", "dev", "--downgrade").text == value["downgrade"].rstrip("\n")
    assert value["downgrade"] == value["preferences"].replace("990", "1001")


def test_an_unexpected_failure_has_an_exit_code_of_ours(own: Place) -> None:
    # remctl has 1 for itself.
    (own.directory / "queue/new").rename(own.directory / "queue/gone")
    done = own.cli("queue")
    assert done.code == Exit.MACHINE
    assert b"queue/new" in done.err
    assert b"Traceback" not in done.err


def test_a_path_too_long_for_a_socket_is_said(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20)
    with places.place() as made:
        run(["cp", "-a", made.directory, folder])
        moved = Place(directory=folder, log=tmp_path / "log")
        done = moved.cli("daemon", "--drain")
    run(["gpgconf", "--homedir", folder / "gnupg", "--kill", "all"], check=False)
    assert done.code in (Exit.MACHINE, Exit.CONFIG)
    assert b"daemon.sock" in done.err
    assert b"Traceback" not in done.err


def test_submissions_while_the_daemon_is_down(own: Place, tmp_path: Path) -> None:
    repo = packages.native(tmp_path / "greet")
    own.package(repo)
    done = own.cli("submit", "staging", "greet", "main")
    assert done.code == 0
    assert b"not checked yet" in done.err
    job = done.text
    value = own.json("queue")
    assert value == {"as_of": None, "jobs": [], "not_taken_up": [job], "paused": []}
    assert "is the daemon running?" in own.cli("queue").text
    # What cannot be admitted is accepted, too, and refused at take-up.
    second = own.json("submit", "no-such", "nobody", "x")
    assert second["checked"] is False
    assert own.cli("status").text == "no jobs"
    with cannedworker.CannedWorker(own.directory / "run/worker.sock").serving():
        assert own.cli("daemon", "--drain").code == 0
    assert own.json("status", job)["state"] == "published"
    status = own.json("status", second["job"])
    assert status["state"] == "refused"
    assert {r["code"] for r in status["reasons"]} == {"no-pocket", "no-package"}
    assert own.json("queue")["not_taken_up"] == []


def test_a_daemon_that_is_up(own: Place, tmp_path: Path) -> None:
    repo = packages.native(tmp_path / "greet")
    own.package(repo)
    with (
        cannedworker.CannedWorker(own.directory / "run/worker.sock").serving() as worker,
        own.daemon() as daemon,
    ):
        # Refused: every reason at once, and nothing is queued.
        done = own.cli("submit", "no-such", "nobody", "main")
        assert done.code == Exit.REFUSED
        assert b"[no-pocket]" in done.err
        assert b"[no-package]" in done.err
        assert own.json("queue") == {"as_of": None, "jobs": [], "not_taken_up": [], "paused": []}
        assert own.cli("daemon").code == Exit.MACHINE
        with worker.held("build") as held:
            job = own.cli("submit", "staging", "greet", "main").text
            held.wait()
            assert own.json("queue")["jobs"][0]["job"] == job
            assert own.json("status", job)["stage"] == "build"
            assert own.cli("retry", job).code == Exit.DATA
            assert "build: attempt 1" in own.cli("log", job).text
            assert job in own.cli("status").text
        assert own.ended(job).status.state == State.PUBLISHED
        log = own.cli("log", job[-4:]).text
        assert "running -> published" in log
        assert f"---- export-1 ----\norder export {job}.export-1" in log
        text = own.cli("status", job).text
        assert "published  publication 2" in text
        assert own.json("status", job)["published"]["publication"] == 2
        assert own.cli("cancel", job).code == 0
        assert own.ended(job).status.state == State.PUBLISHED
        # The same again is refused, with an exit code that says so.
        waited = own.cli("submit", "staging", "greet", "main", "--wait")
        assert waited.code == Exit.REFUSED
        worker.answers["build"] = cannedworker.failing("ftbfs", "make: exit 2")
        waited = own.cli("submit", "dev", "greet", "main", "--wait")
        assert waited.code == Exit.FAILED
        assert b"make: exit 2 [ftbfs]" in waited.err
        followed = own.cli("log", "--follow", waited.text)
        assert followed.code == 0
        os.kill(daemon.pid, signal.SIGTERM)
        until(lambda: daemon.poll() is not None)
        assert daemon.returncode == 0
    assert not own.site.socket.exists()


def test_the_log_is_whole_and_harmless(own: Place, tmp_path: Path) -> None:
    repo = packages.native(tmp_path / "greet")
    own.package(repo)
    job = own.job("staging", repo)
    attempt = job.directory / "attempts/build-1"
    attempt.mkdir()
    (attempt / "order.tar").touch()
    # A character of two bytes across each boundary of a buffer, and an escape sequence.
    (attempt / "log").write_text("\x1b[2J" + "xµ" * 100_000 + "\u202e\n")
    text = own.cli("log", job.id).out.decode()
    assert "\\x1b[2J" in text
    assert "\\u202e" in text
    assert text.count("µ") == 100_000
    assert "\ufffd" not in text


def test_bases_of_all_pockets(place: Place) -> None:
    code, out, _ = call(place, "base", "refresh", "--json")
    assert code == Exit.OK
    jobs = json.loads(out)["jobs"]
    queued = [place.directory / "queue/new" / f"{job}.json" for job in jobs]
    assert [json.loads(path.read_text())["args"] for path in queued] == [
        [name] for name in place.site.pockets
    ]
    for path in queued:
        path.unlink()
