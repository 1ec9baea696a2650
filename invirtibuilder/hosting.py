"""Making and keeping what a site has on disk: directories, repositories, pockets."""

from __future__ import annotations

import functools
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from invirtibuilder import files, gitshared, model
from invirtibuilder.accounts import group_id, let
from invirtibuilder.apt import stanza
from invirtibuilder.apt.publications import RELEASE_LIMIT
from invirtibuilder.apt.publickeys import expiries, joined
from invirtibuilder.apt.signer import verified
from invirtibuilder.errors import Malformed, NotFound, Unavailable
from invirtibuilder.gitrepo import Repository
from invirtibuilder.settings import Pocket, Site
from invirtibuilder.spool import Spool
from invirtibuilder.stages import history
from invirtibuilder.stages.context import LABEL, Context, archive, kept_keys, public_key
from invirtibuilder.stages.transaction import first_publication
from invirtibuilder.superproject import Superproject


def ensure_site(site: Site) -> None:
    """Make every directory and repository that the configuration implies; safe to repeat.

    Raises Denied for who may not write there.
    """
    for path in (site.jobs, site.packages, site.archive, site.origs, site.events):
        path.mkdir(parents=True, exist_ok=True)
    site.socket.parent.mkdir(exist_ok=True)
    # What is not published, or is about to be, is for who pushes or submits it, and nobody else.
    readers = {site.packages: site.push_group}
    readers |= dict.fromkeys((site.jobs, site.events), site.queue_group)
    for path, group in readers.items():
        if group:
            let(path, group_id(group), 0o750)
    Spool(site.queue).create(site.queue_group)
    Superproject.create(site.superproject, head=next(iter(site.pockets.values())).branch)
    write_push_rules(site)


def write_push_rules(site: Site) -> None:
    """What the repositories' hooks know of the pockets."""
    pockets = {
        pocket.name: {
            "branch": pocket.branch,
            "allow_backtracking": pocket.allow_backtracking,
            "tag_format": pocket.tag_format,
        }
        for pocket in site.pockets.values()
    }
    files.write_json(site.push_rules, {"pockets": pockets})


def push_hook(site: Site, package: str) -> list[str]:
    """The pre-receive program of a package's repository."""
    return [
        *(sys.executable, "-I", "-m", "invirtibuilder.door.receive"),
        *("--superproject", str(site.superproject)),
        *("--pockets", str(site.push_rules)),
        *("--package", package),
    ]


def create_package(site: Site, package: str, source: Path | None = None) -> Repository:
    """Make a package's bare repository, or bring its hook up to date; take `source` over."""
    if source is not None and not any((source / name).exists() for name in ("HEAD", ".git")):
        raise NotFound(f"no git repository {source}", code="no-repository")
    ensure_site(site)
    path = site.package_repository(package)
    repository = Repository.create(
        path,
        hook=push_hook(site, package),
        max_size=site.max_push,
        description=f"Debian package {package}",
        shared=bool(site.push_group),
    )
    if source is not None:
        repository.import_from(source)
    if site.push_group:
        folders = {str(Path(p.tag_format).parent) for p in site.pockets.values()}
        gitshared.share(path, group_id(site.push_group), sorted(folders - {"."}))
    return repository


def package_names(site: Site) -> list[str]:
    """The packages that have a repository here, sorted."""
    if not site.packages.is_dir():
        return []
    # Not a glob, which finds nothing where one may not look.
    names = (name for name in os.listdir(site.packages) if name.endswith(".git"))
    return sorted(name.removesuffix(".git") for name in names)


def ensure_pocket(context: Context, pocket: Pocket) -> None:
    """Make a pocket's archive with a first, empty publication; safe to repeat."""
    key = public_key(context.site, pocket)
    key.parent.mkdir(parents=True, exist_ok=True)
    try:
        armoured = context.signer(pocket).public_key()
    except Unavailable:
        # The signer is away: what is published stays, and the key that it was published with.
        if not key.exists():
            raise
    else:
        kept = kept_keys(context.site, pocket)
        if not kept.exists() or not key.exists() or key.read_bytes() != armoured:
            # Before the new one is there: a key that is dropped must not be missed.
            earlier = kept.read_bytes() if kept.exists() else b""
            files.write_atomic(kept, joined(earlier + armoured))
            files.write_atomic(key, armoured)
    first_publication(context, pocket)


@dataclass(frozen=True, kw_only=True)
class Client:
    """What a client puts below /etc/apt to use a pocket."""

    sources: str
    preferences: str
    downgrade: str  # preferences by which APT goes back to lower versions, too

    @property
    def text(self) -> str:
        """The sources stanza, with the preferences as a comment above it."""
        lines = "".join(f"#   {line}\n" for line in self.preferences.splitlines())
        note = "# To put it above the mirror, in /etc/apt/preferences.d:\n"
        return note + lines + self.sources


def client(site: Site, pocket: Pocket, *, at: str = "", keyring: bool = False) -> Client:
    """The stanzas of a pocket, with its armoured public keys in them.

    With `keyring` they name the file of the pocket's keyring package instead. `at` is a commit of
    the superproject or a date: the stanza is then of that state, for good, with the keys that
    signed it. Raises NotFound without a publication, that package or such a key, and what
    `history.point` raises.
    """
    if keyring and not pocket.archive_keyring:
        raise NotFound(
            f"pocket {pocket.name} keeps no keyring package",
            hint=f"pockets: {pocket.name}: archive_keyring: true",
            code="no-keyring",
        )
    publications = archive(site, pocket).publications
    if publications.current() is None:
        raise NotFound(
            f"pocket {pocket.name} has no publication yet",
            hint=f"`invirtibuilder pocket create {pocket.name}`",
            code="no-publication",
        )
    uri, note = f"{site.url.rstrip('/')}/{pocket.name}", ""
    keys: bytes | str = pocket.keyring_file if keyring else public_key(site, pocket).read_bytes()
    if at:
        point = history.point(site, pocket, at)
        uri += f"/{publications.path(point.publication).relative_to(publications.root)}"
        note = f"# {pocket.name} as it was: {point.text}\n"
        signed = _keys_of(site, pocket, point.publication, keyring=keyring)
        keys = keys if keyring else signed
    text = stanza.sources(
        uri,
        pocket.codename,
        pocket.components[:1],
        keys,
        check_valid_until=not at,
    )
    preferences = functools.partial(
        stanza.preferences, site.name, label=LABEL, codename=pocket.codename
    )
    return Client(
        sources=note + text,
        preferences=preferences(),
        downgrade=preferences(priority=stanza.DOWNGRADE),
    )


def _keys_of(site: Site, pocket: Pocket, number: int, *, keyring: bool) -> bytes:
    """The keys that signed a publication and are still good; some, at least, of the `keyring`."""
    release = archive(site, pocket).publications.path(number) / "dists" / pocket.codename
    inrelease = files.read_capped(release / "InRelease", limit=RELEASE_LIMIT)
    kept, key = kept_keys(site, pocket), public_key(site, pocket)
    known = (key if keyring or not kept.exists() else kept).read_bytes()
    signers, ends = verified(known, inrelease), expiries(known)
    held = [key for key in signers if key in ends]
    good = [key for key in held if (end := ends[key]) is None or end > model.utcnow()]
    if good:
        return joined(known, *good)
    what = f"publication {number} of {pocket.name} is signed by {' '.join(signers) or 'nobody'}"
    if held:
        why, code = "which has expired", "key-expired"
    elif keyring:
        why, code = f"which {pocket.keyring} has not", "key-not-in-keyring"
    else:
        why, code = "which is not kept", "key-gone"
    hint = "`rollback` publishes that state anew, with the keys of now"
    raise NotFound(f"{what}, {why}", hint="without --keyring" if keyring else hint, code=code)


def add_pocket(file: Path, name: str, settings: dict[str, str]) -> str:
    """The configuration's text with one more pocket, comments kept. Raises Malformed, NotFound."""
    text = file.read_text()
    found = re.search(r"^pockets:[ \t]*(#.*)?\n", text, re.MULTILINE)
    if not found:
        raise NotFound(f"{file} has no line `pockets:`", hint=f"add the pocket {name} by hand")
    if re.search(rf"^  {re.escape(name)}:", text, re.MULTILINE):
        raise Malformed(f"{file} has a pocket {name} already", code="pocket-exists")
    lines = [f"  {name}:", *(f"    {key}: {value}" for key, value in settings.items())]
    following = re.compile(r"^[^\s#]", re.MULTILINE).search(text, found.end())
    end = following.start() if following else len(text)
    before = text[:end].rstrip("\n")
    rest = f"\n{text[end:]}" if following else ""
    return before + "\n" + "\n".join(lines) + "\n" + rest
