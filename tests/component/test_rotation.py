"""Keys come and go: a pocket as it was is still had with the keys that signed it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder import hosting, model
from invirtibuilder.apt import signer
from invirtibuilder.apt.publications import Publications
from invirtibuilder.apt.publickeys import expiries, joined
from invirtibuilder.errors import NotFound
from invirtibuilder.fsck import check
from invirtibuilder.run import run
from invirtibuilder.settings import Pocket, Signing
from invirtibuilder.stages import validity
from invirtibuilder.stages.context import kept_keys
from invirtibuilder.states import State
from tests.support import packages, signing
from tests.support import place as places
from tests.support.aptclient import AptClient
from tests.support.line import Line
from tests.support.place import Place, until


def staging(line: Line) -> Pocket:
    return line.site.pockets["staging"]


def published(line: Line, version: str) -> str:
    """Publish a version of alpha in staging; the superproject's commit."""
    line.package("alpha", version)
    job = line.run(line.job("staging", "alpha"))
    assert job.status.state == State.PUBLISHED, job.status
    return str(job.need("publish")["superproject_commit"])


def signed_by(line: Line, key: str, *also: str) -> None:
    """Have other keys, as a daemon does that is started with them in its configuration."""
    pockets: Any = line.site.pockets
    keys = Signing(home=line.site.signing.home, key=key, also=also)
    pockets["staging"] = dataclasses.replace(pockets["staging"], signing=keys)
    hosting.ensure_pocket(line.context, staging(line))
    validity.ensure_signed(line.context, staging(line))


def sources(line: Line, at: str, *, keyring: bool = False) -> str:
    return hosting.client(line.site, staging(line), at=at, keyring=keyring).sources


def keys_in(stanza: str) -> set[str]:
    """Fingerprints of the keys in a stanza."""
    lines = stanza.partition("Signed-By:\n")[2].splitlines()
    key = "\n".join("" if text == " ." else text.strip() for text in lines) + "\n"
    return set(expiries(key.encode()))


def refusal(line: Line, at: str, *, keyring: bool = False) -> NotFound:
    with pytest.raises(NotFound) as caught:
        sources(line, at, keyring=keyring)
    return caught.value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotated:
    """alpha 1.0 of the old key, 2.0 of both, 3.0 of the new one; and the superproject's commits."""

    old: str
    new: str
    commits: tuple[str, str, str]


@pytest.fixture
def rotated(line: Line) -> Rotated:
    old = staging(line).signing.key
    new = signer.create_key(line.site.signing.home, "New", "new@example.org")
    first = published(line, "1.0")
    # What is current is signed again by the keys that come.
    published(line, "1.1")
    signed_by(line, old, new)
    second = published(line, "2.0")
    published(line, "2.1")
    signed_by(line, new)
    return Rotated(old=old, new=new, commits=(first, second, published(line, "3.0")))


def test_apt_gets_what_only_a_dropped_key_has_signed(
    line: Line,
    rotated: Rotated,
    tmp_path: Path,
) -> None:
    wanted = [{rotated.old}, {rotated.old, rotated.new}, {rotated.new}]
    for number, (commit, keys) in enumerate(zip(rotated.commits, wanted, strict=True), start=1):
        stanza = sources(line, commit)
        assert keys_in(stanza) == keys
        apt = AptClient(folder=tmp_path / str(number))
        apt.configure(stanza)
        apt.update()
        assert apt.candidate("alpha") == f"{number}.0"
        assert apt.download("alpha")
    # What clients of the pocket itself are given is the new key alone.
    assert keys_in(hosting.client(line.site, staging(line)).sources) == {rotated.new}
    assert set(expiries(kept_keys(line.site, staging(line)).read_bytes())) == wanted[1]
    report = check.check(line.context, [staging(line)], level="b", full=True, mend=False)
    assert not report.findings, report.findings


def test_a_key_that_is_no_longer_kept_is_said(line: Line, rotated: Rotated) -> None:
    kept_keys(line.site, staging(line)).unlink()
    hosting.ensure_pocket(line.context, staging(line))
    fault = refusal(line, rotated.commits[0])
    assert fault.code == "key-gone"
    assert rotated.old[-16:] in str(fault)
    assert "rollback" in fault.hint
    # One of two is enough for APT.
    assert keys_in(sources(line, rotated.commits[1])) == {rotated.new}
    report = check.check(line.context, [staging(line)], level="b", full=True, mend=False)
    assert {found.kind for found in report.findings} == {"not-comparable"}
    assert not report.drift


def test_the_keyring_package_has_no_dropped_key(line: Line, rotated: Rotated) -> None:
    pockets: Any = line.site.pockets
    pockets["staging"] = dataclasses.replace(staging(line), archive_keyring=True)
    assert refusal(line, rotated.commits[0], keyring=True).code == "key-not-in-keyring"
    for commit in rotated.commits[1:]:
        assert sources(line, commit, keyring=True).endswith("staging-archive-keyring.asc\n")


def test_a_key_that_has_expired_since_is_said(line: Line, rotated: Rotated, tmp_path: Path) -> None:
    home, kept = line.site.signing.home, kept_keys(line.site, staging(line))
    run(["gpg", "--homedir", home, "--batch", "--quick-set-expire", rotated.old, "seconds=1"])
    public = signer.GpgSigner(gnupghome=home, key=rotated.old).public_key()
    kept.write_bytes(joined(kept.read_bytes() + public))
    end = expiries(kept.read_bytes())[rotated.old]
    assert end
    until(lambda: model.utcnow() > end)
    fault = refusal(line, rotated.commits[0])
    assert (fault.code, rotated.old in str(fault)) == ("key-expired", True)
    stanza = sources(line, rotated.commits[1])
    assert keys_in(stanza) == {rotated.new}
    apt = AptClient(folder=tmp_path / "apt")
    apt.configure(stanza)
    apt.update()
    assert apt.candidate("alpha") == "2.0"


@pytest.fixture
def place() -> Iterator[Place]:
    """A site whose keys another process has."""
    with places.canned() as (made, _):
        signing.apart(made)
        with signing.signer(made):
            yield made


def _shows(publications: Publications, number: int) -> bool:
    return publications.current() == number


def test_by_way_of_a_signer(place: Place, tmp_path: Path) -> None:
    """The daemon has no key at any time, and the commands say what a person does."""
    greet = packages.native(tmp_path / "greet")
    place.package(greet)
    commits = []
    for number, repo in enumerate((greet, packages.upgraded(greet, "1.1"))):
        if number:
            place.push(repo)
        job = place.submitted("staging", repo)
        assert job.status.state == State.PUBLISHED, job.status
        commits.append(job.need("publish")["superproject_commit"])
    old = place.site.signing.key
    new = place.json("key", "new", "staging")["fingerprint"]
    publications = place.context.archive(place.site.pockets["staging"]).publications
    for before, after, count in (
        (f"key: {old}", f"key: {old}\n    also: [{new}]", 4),
        (f"key: {old}\n    also: [{new}]", f"key: {new}", 5),
    ):
        place.edit(before, after)
        with place.daemon():
            until(functools.partial(_shows, publications, count))
    stanza = place.cli("sources", "staging", "--at", commits[0], check=True).text + "\n"
    assert keys_in(stanza) == {old}
    apt = AptClient(folder=tmp_path / "apt")
    apt.configure(stanza)
    apt.update()
    assert apt.candidate("greet") == "1.0"
    assert keys_in(place.cli("sources", "staging", "--at", commits[1], check=True).text) == {new}
    fsck = place.cli("fsck")
    assert (fsck.code, "not-comparable" in fsck.text) == (0, False), fsck.text
