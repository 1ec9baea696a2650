"""The signer as a service: what it signs, what it refuses, and what becomes of jobs without it."""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from invirtibuilder import model, sockets
from invirtibuilder.apt.release import release_text
from invirtibuilder.apt.signer import verified
from invirtibuilder.apt.signerclient import MAX_RELEASE
from invirtibuilder.errors import Fault, MachineFault, Malformed, Unavailable
from invirtibuilder.jobs import Job
from invirtibuilder.pipeline import advance
from invirtibuilder.run import run
from invirtibuilder.settings import Pocket
from invirtibuilder.signerservice import checked
from invirtibuilder.stages.context import Context, public_key
from invirtibuilder.states import State
from tests.support import packages, signing
from tests.support import place as places
from tests.support.place import ROOT, Place

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
COMMIT = "a1" * 20
BLANK = hashlib.sha256(b"").hexdigest()
NAMES = ("main/binary-amd64/Packages", "main/binary-amd64/Packages.gz", "main/source/Sources.gz")


def text(pocket: Pocket, date: datetime = NOW, **changed: str) -> str:
    """What the daemon asks a signature for, in a site as `init` makes it."""
    fields = {
        "Origin": "test",
        "Label": "invirtibuilder",
        "Suite": pocket.name,
        "Codename": pocket.codename,
        "Architectures": pocket.architectures[0],
        "Components": "main",
        "Description": pocket.description,
        **changed,
    }
    indices = dict.fromkeys(NAMES, (BLANK, 0))
    return release_text(fields, indices, date, pocket.valid_for, COMMIT).decode()


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A site whose signer runs."""
    with places.place() as made:
        signing.apart(made)
        with signing.signer(made):
            yield made


@pytest.fixture
def context(place: Place) -> Context:
    return place.context


def dev(context: Context) -> Pocket:
    return context.site.pockets["dev"]


def later(context: Context) -> datetime:
    """A Date that is new enough, and not of the future."""
    record = dev(context).signing.home / "signed/dev.json"
    now = model.utcnow().replace(microsecond=0)
    last = (
        datetime.fromisoformat(json.loads(record.read_text())["date"]) if record.exists() else now
    )
    return max(now, last + timedelta(seconds=1))


Spoilt = Callable[[str], str | bytes]
INDEX = f" {BLANK} 0 {NAMES[0]}"
WRONG: dict[str, Spoilt] = {
    "empty": lambda t: "",
    "not a Release": lambda t: "self-check\n",
    "no text": lambda t: t.encode().replace(b"amd64", b"\xff"),
    "a NUL": lambda t: t.replace("Suite: dev", "Suite: dev\0"),
    "a tab": lambda t: t.replace("Suite: dev", "Suite:\tdev"),
    "carriage returns": lambda t: t.replace("\n", "\r\n"),
    "no end": lambda t: t.rstrip("\n"),
    "two ends": lambda t: t + "\n",
    "a blank before a line's end": lambda t: t.replace("Suite: dev", "Suite: dev "),
    "another origin": lambda t: t.replace("Origin: test", "Origin: Debian"),
    "another label": lambda t: t.replace("Label: i", "Label: I"),
    "another suite": lambda t: t.replace("Suite: dev", "Suite: prod"),
    "another codename": lambda t: t.replace("Codename: dev", "Codename: bookworm"),
    "another architecture": lambda t: t.replace("Architectures: ", "Architectures: riscv64 "),
    "another component": lambda t: t.replace("Components: main", "Components: main contrib"),
    "no origin": lambda t: t.replace("Origin: test\n", ""),
    "no description": lambda t: re.sub("Description: .*\n", "", t),
    "a field more": lambda t: t.replace("Date:", "NotAutomatic: yes\nDate:"),
    "a field twice": lambda t: t.replace("Suite: dev\n", "Suite: dev\nSuite: dev\n"),
    "another order": lambda t: t.replace("Suite: dev\n", "").replace("Date:", "Suite: dev\nDate:"),
    "a continued field": lambda t: t.replace("Date:", " and more\nDate:"),
    "no Acquire-By-Hash": lambda t: t.replace("Acquire-By-Hash: yes\n", ""),
    "a validity": lambda t: t.replace(
        "Acquire", "Valid-Until: Fri, 02 Jan 2027 03:04:05 UTC\nAcquire"
    ),
    "MD5": lambda t: t.replace("SHA256:", "MD5Sum:\nSHA256:"),
    "SHA-256 twice": lambda t: t + "SHA256:\n",
    "another hash": lambda t: t.replace(INDEX, INDEX.upper()),
    "a negative size": lambda t: t.replace(INDEX, INDEX.replace(" 0 ", " -1 ")),
    "a size with zeros": lambda t: t.replace(INDEX, INDEX.replace(" 0 ", " 00 ")),
    "an index twice": lambda t: t.replace(INDEX, f"{INDEX}\n{INDEX}"),
    "another order of indices": lambda t: t.replace(f"{INDEX}\n", "") + f"{INDEX}\n",
    "an index of another component": lambda t: t.replace(" main/binary", " contrib/binary", 1),
    "an index above": lambda t: t.replace(" main/", " main/../", 1),
    "an absolute index": lambda t: t.replace(" main/", " /main/", 1),
    "an index that is hidden": lambda t: t.replace(" main/", " main/.", 1),
    "an index without a name": lambda t: t.replace(" main/", " main//", 1),
    "an index at the top": lambda t: t.replace(" main/binary-amd64/Packages\n", " main\n", 1),
    "a blank in an index": lambda t: t.replace(" main/", " main/ ", 1),
    "dashes": lambda t: t + "- escaped\n",
    "a signature": lambda t: t + "-----BEGIN PGP SIGNATURE-----\n",
    "a commit that is none": lambda t: t.replace(COMMIT, "main"),
    "no date": lambda t: re.sub("Date: .*\n", "", t),
    "a date that is none": lambda t: re.sub("Date: .*", "Date: yesterday", t),
    "a date without a zone": lambda t: t.replace(" UTC", " -0000"),
    "a date in another zone": lambda t: t.replace(" UTC", " +0200"),
    "a date in another form": lambda t: t.replace("Fri, 02 Jan", "Fri,  2 Jan"),
}


@pytest.mark.parametrize("how", WRONG)
def test_another_text_is_no_release(place: Place, how: str) -> None:
    site = place.site
    good = text(site.pockets["dev"])
    assert checked(site, site.pockets["dev"], good.encode(), NOW) == (NOW, COMMIT)
    wrong = WRONG[how](good)
    assert wrong != good
    data = wrong if isinstance(wrong, bytes) else wrong.encode()
    with pytest.raises(Malformed):
        checked(site, site.pockets["dev"], data, NOW)


def test_the_future_is_not_signed(place: Place) -> None:
    site = place.site
    good = text(site.pockets["dev"]).encode()
    checked(site, site.pockets["dev"], good, NOW - timedelta(seconds=9))
    with pytest.raises(Malformed, match="in the future"):
        checked(site, site.pockets["dev"], good, NOW - timedelta(seconds=12))


def test_validity_is_the_pockets(place: Place) -> None:
    with places.place() as own:
        own.edit("    trust_domain: untrusted", "    valid_for: 7d\n    trust_domain: untrusted")
        site = own.site
        pocket = site.pockets["dev"]
        good = text(pocket)
        checked(site, pocket, good.encode(), NOW)
        until = email.utils.format_datetime(NOW + timedelta(days=7)).replace("+0000", "UTC")
        assert f"Valid-Until: {until}\n" in good
        for wrong in (
            good.replace(until, until.replace("2026", "2027")),
            good.replace(f"Valid-Until: {until}\n", ""),
        ):
            with pytest.raises(Malformed):
                checked(site, pocket, wrong.encode(), NOW)


def test_it_signs_newer_releases_and_the_last_one_again(place: Place, context: Context) -> None:
    signer = context.signer(dev(context))
    date = later(context)
    release = text(dev(context), date).encode()
    inrelease, detached = signer.sign(release)
    assert verified(signer.public_key(), inrelease) == list(signer.keys)
    assert verified(signer.public_key(), detached, release) == list(signer.keys)
    assert release.rstrip() in inrelease
    assert signer.signed(inrelease)
    told = signing.log(place).read_text()
    digest = hashlib.sha256(release).hexdigest()
    assert (
        f"signed dev: date {model.iso(date)}, sha256 {digest}, superproject commit {COMMIT}" in told
    )
    # A daemon that was killed may not have it.
    assert verified(signer.public_key(), signer.sign(release)[0]) == list(signer.keys)
    for other in (date, date - timedelta(seconds=1)):
        with pytest.raises(MachineFault, match="is not after the last") as caught:
            signer.sign(text(dev(context), other, Description="another").encode())
        assert caught.value.code == "signer-refused"
    # Each pocket has its own.
    staging = context.site.pockets["staging"]
    context.signer(staging).sign(text(staging, date).encode())
    signer.sign(text(dev(context), date + timedelta(seconds=1)).encode())


def test_what_was_signed_last_outlives_the_signer() -> None:
    with places.place() as place:
        signing.apart(place)
        context = place.context
        signer, date = context.signer(dev(context)), later(place.context)
        release = text(dev(context), date).encode()
        with signing.signer(place) as process:
            signer.sign(release)
            process.kill()
            process.wait()
        with signing.signer(place):
            with pytest.raises(MachineFault, match="is not after the last"):
                signer.sign(text(dev(context), date, Description="another").encode())
            signer.sign(release)


def test_it_refuses_over_its_socket(place: Place, context: Context) -> None:
    signer = context.signer(dev(context))
    for wrong in (b"", b"self-check\n", text(context.site.pockets["prod"]).encode()):
        with pytest.raises(MachineFault) as caught:
            signer.sign(wrong)
        assert caught.value.code == "signer-refused"
    with pytest.raises(Fault, match="at most"):
        signer.sign(b"x" * (MAX_RELEASE + 1))
    assert "nothing is signed" in signing.log(place).read_text()


QUESTIONS = {
    "another verb": b'{"verb": "export-secret-keys", "pocket": "dev", "size": 0}\n',
    "no verb": b'{"pocket": "dev", "size": 0}\n',
    "another pocket": b'{"verb": "public-key", "pocket": "other", "size": 0}\n',
    "a pocket elsewhere": b'{"verb": "sign", "pocket": "../dev", "size": 0}\n',
    "no pocket": b'{"verb": "check", "size": 0}\n',
    "a list": b"[1]\n",
    "no JSON": b"sign dev\n",
    "no line": b"x" * (128 << 10),
    "an early end": b'{"verb": "sign", "pocket": "dev", "size": 100}\nOrigin',
    "nothing": b"",
}


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_a_question_that_is_none(place: Place, question: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(place.directory / signing.SOCKET))
        try:
            connection.sendall(question)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            return
        told, content = sockets.receive(connection, limit=1 << 20, seconds=20)
    assert (told["ok"], told["code"], content) == (False, "signer-refused", b"")
    place.context.signer(dev(place.context)).check()


def test_an_answer_that_is_none(tmp_path_factory: pytest.TempPathFactory) -> None:
    with places.place() as place:
        signing.apart(place)
        signer = place.context.signer(dev(place.context))
        answers = (
            b"",
            b'{"size": 0}\n',
            b'{"ok": true, "size": 0}\n',
            b'{"ok": false, "size": 0}\n',
        )
        for answer in answers:
            with sockets.listening(place.directory / signing.SOCKET) as server:
                pid = os.fork()
                if pid == 0:
                    connection, _ = server.accept()
                    sockets.receive(connection, limit=1 << 20, seconds=20)
                    connection.sendall(answer)
                    os._exit(0)
                with pytest.raises((Unavailable, MachineFault)) as caught:
                    signer.sign(b"x")
                assert caught.value.code == "no-signer"
                os.waitpid(pid, 0)


ASK = """
import sys
from pathlib import Path
from invirtibuilder.apt.signerclient import SocketSigner
try:
    SocketSigner(path=Path(sys.argv[1]), pocket="dev", keys=()).check()
except Exception as error:
    print(error.code, error)
"""


@pytest.mark.root
def test_nobody_but_the_sites_account_and_root_is_answered(place: Place) -> None:
    folder, path = place.directory.parent, place.directory / signing.SOCKET
    code = Path("/usr/lib/python3/dist-packages")
    argv = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "/usr/bin/python3"]
    folder.chmod(0o755)
    with places.place() as other:
        shutil.copytree(ROOT / "invirtibuilder", other.directory / "code/invirtibuilder")
        other.directory.parent.chmod(0o755)
        env = {"PYTHONPATH": f"{other.directory}/code:{code}"}
        said = run([*argv, "-c", ASK, path], env=env).text
        assert said.startswith("not-the-site ")
        path.chmod(0o666)
        said = run([*argv, "-c", ASK, path], env=env).text
        path.chmod(0o660)
        assert said.startswith("signer-refused ")
        assert "neither the site's own account nor root" in said
        # The control: the same program, as somebody who may.
        assert run(["/usr/bin/python3", "-c", ASK, path], env=env).text == ""


def test_a_pocket_is_published_by_way_of_the_signer(tmp_path: Path) -> None:
    """While it is away, or refuses, jobs wait; then they are published, and all is in order."""
    repo = packages.native(tmp_path / "greet")
    with places.canned() as (place, _):
        signing.apart(place)
        place.package(repo)
        context = place.context
        job = place.submitted("staging", repo)
        assert stands(job, State.WAITING)
        assert job.status.reasons[0]["code"] == "no-signer"
        with signing.signer(place):
            place.edit("name: test\n", "name: elsewhere\n")
            advance(context, job)
            assert stands(job, State.WAITING)
            assert job.status.reasons[0]["code"] == "signer-refused"
            assert "'Origin: test', not 'Origin: elsewhere'" in job.status.reasons[0]["message"]
            place.edit("name: elsewhere\n", "name: test\n")
            advance(context, job)
            assert stands(job, State.PUBLISHED), job.status
            commit = job.need("publish")["superproject_commit"]
            assert f"superproject commit {commit}" in signing.log(place).read_text()
            assert place.cli("fsck").code == 0
            assert {key["secret"] for key in place.json("key", "list")} == {True}


def stands(job: Job, state: State) -> bool:
    return job.status.state == state


def test_what_was_signed_and_then_undone_is_in_nobodys_way(place: Place, context: Context) -> None:
    """Within the same second, too: the next one has a later Date."""
    pocket = context.site.pockets["prod"]
    publications, now = context.archive(pocket).publications, model.utcnow()
    signer, dates = context.signer(pocket), []

    def sign_and_fail(release: bytes) -> tuple[bytes, bytes]:
        signer.sign(release)
        raise MachineFault("what comes next fails")

    for sign in (sign_and_fail, signer.sign):
        dates.append(publications.next_date(now))
        with suppress(MachineFault):
            publications.stage(2, date=dates[-1], valid_for=None, again=1, sign=sign)
    assert publications.date(2) == dates[1] == dates[0] + timedelta(seconds=1)


def test_the_daemon_starts_without_the_signer() -> None:
    with places.place() as place:
        signing.apart(place)
        with place.daemon():
            assert "the signer at" in place.log.read_text()
        key = public_key(place.site, place.site.pockets["dev"])
        key.unlink()
        with place.daemon(ready=False) as process:
            assert process.wait(60) == 69


def test_what_is_wrong_with_a_key_is_said() -> None:
    with places.place() as own:
        signing.apart(own)
        home = own.directory / "gnupg"
        with signing.signer(own):
            assert self_checked(own) == "ok"
            shutil.rmtree(home / "private-keys-v1.d")
            run(["gpgconf", "--homedir", home, "--kill", "all"])
            with pytest.raises(MachineFault) as caught:
                own.context.signer(dev(own.context)).check()
            assert caught.value.code == "key-missing"
            assert not own.context.signer(dev(own.context)).described()[0].secret
            assert self_checked(own) == "missing"


def self_checked(place: Place) -> str:
    findings = json.loads(place.cli("self-check", "--json").out)["findings"]
    return str(next(found["state"] for found in findings if found["what"] == "signing key"))
