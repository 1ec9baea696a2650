"""The compiled ACLs: what the door programs know without asking anybody, and remctld's list.

run/door.json         pockets, who may do what in each, what clients put below /etc/apt
run/submitters        everybody with something to ask for, as remctl's `file:` wants it
run/acl-answers.json  the last good answer of each program, for its next failure

A program's answer counts for three times `acl_refresh`. When the program fails, its last answer
stays until then, and no longer; nobody else's rights are touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from invirtibuilder import acl, config, files, hosting, model
from invirtibuilder.errors import Fault
from invirtibuilder.settings import AclEntry, Pocket, Site
from invirtibuilder.stages.context import archive

VERSION = 1
LIFE = 3
"""Times `acl_refresh`: how long a program's answer counts."""
MAX_TABLE = 256 << 20
AT_THE_DOOR = ("submit", "promote", "rollback", "cancel", "read")
"""Who may do one of these in some pocket is let in by remctld, and who administers the site."""
ADMINISTER = "administer"

Key = tuple[str, str, str]  # program, pocket, action


def table_file(site: Site) -> Path:
    """What door programs read."""
    return site.socket.parent / "door.json"


def submitters_file(site: Site) -> Path:
    """What remctld's configuration names as `file:`."""
    return site.socket.parent / "submitters"


def owner(site: Site) -> int:
    """The uid of the site's own account, which writes the files: whoever made their directory."""
    directory = site.socket.parent
    return (directory if directory.is_dir() else site.directory).stat().st_uid


def _answers_file(site: Site) -> Path:
    return site.socket.parent / "acl-answers.json"


@dataclass(frozen=True, kw_only=True)
class Held:
    """A program's good answer, and when it was asked."""

    time: datetime
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What `write` writes."""

    door: dict[str, Any]
    submitters: str
    answers: Mapping[Key, Held]
    expires: datetime | None  # the first answer to become stale

    @property
    def troubles(self) -> list[str]:
        """What went wrong, a line each, with its pocket."""
        pockets = self.door["pockets"].items()
        return [
            *(f"administrators: {text}" for text in self.door["troubles"]),
            *(f"pocket {name}: {text}" for name, value in pockets for text in value["troubles"]),
        ]


def compile(
    site: Site,
    now: datetime,
    *,
    ask: bool = True,
    stopping: Callable[[], bool] = lambda: False,
) -> Compiled:
    """Read every source of every pocket's ACL; ask the programs unless `ask` is false.

    Raises nothing for a source that fails: it is in the pocket's `troubles`.
    """
    compiler = _Compiler(site, now, lambda: ask and not stopping())
    pockets = {name: compiler.pocket(pocket) for name, pocket in site.pockets.items()}
    troubles: list[str] = []
    administrators = compiler.names(site.administrators, "", ADMINISTER, troubles)
    door = {
        "v": VERSION,
        "site": site.name,
        "queue": str(site.queue),
        "jobs": str(site.jobs),
        "socket": str(site.socket),
        "written": model.iso(now),
        "pockets": pockets,
        "administrators": administrators,
        "troubles": troubles,
        "packages": hosting.package_names(site),
    }
    ends = [held.time + compiler.life for held in compiler.answers.values()]
    return Compiled(
        door=door,
        submitters=_submitters(pockets, administrators),
        answers=compiler.answers,
        expires=min(ends, default=None),
    )


def write(
    site: Site,
    now: datetime,
    *,
    ask: bool = True,
    wait: bool = True,
    stopping: Callable[[], bool] = lambda: False,
) -> Compiled:
    """Compile and replace the files, one writer at a time.

    Raises OSError (a full disk, say), and files.Busy when it shall not wait for another writer.
    """
    directory = site.socket.parent
    directory.mkdir(parents=True, exist_ok=True)
    with files.locked(directory / "acl.lock", wait=wait):
        made = compile(site, now, ask=ask, stopping=stopping)
        files.write_json(_answers_file(site), _as_json(made.answers), mode=0o600)
        files.write_json(table_file(site), made.door)
        files.write_atomic(submitters_file(site), made.submitters)
    return made


class Configured:
    """A site as its configuration says now, for the doors: what `acl compile` has written for them
    is not undone by a daemon, which otherwise goes by what it said when it started."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._text = self._told = _text(site)

    def now(self, log: Callable[[str], None]) -> Site:
        """Says once what has changed; what cannot be read has not."""
        text, newest, what = _text(self._site), self._site, CHANGED
        if text == self._text:
            return newest
        try:
            newest = config.load(self._site.file)
        except Fault as fault:
            what = f"it cannot be used: {fault}"
        if text != self._told:
            log(f"{self._site.file} has changed: {what}")
            self._told = text
        return newest


CHANGED = "the doors follow its lists; restart the daemon, which goes by the older ones"


def _text(site: Site) -> bytes:
    try:
        return site.file.read_bytes()
    except OSError as error:
        return str(error).encode()


class _Compiler:
    """Compiles one pocket after another and gathers the programs' answers."""

    def __init__(self, site: Site, now: datetime, may_ask: Callable[[], bool]) -> None:
        self.site = site
        self.now = now
        self.may_ask = may_ask
        self.life = timedelta(seconds=LIFE * site.acl_refresh)
        self.answers: dict[Key, Held] = {}
        self._before = _read_answers(_answers_file(site))

    def pocket(self, pocket: Pocket) -> dict[str, Any]:
        """A pocket of the table."""
        troubles: list[str] = []
        actions = {}
        for action, entries in pocket.acl.items():
            actions[action] = self.names(entries, pocket.name, action, troubles)
        ends = [h.time + self.life for key, h in self.answers.items() if key[1] == pocket.name]
        return {
            "description": pocket.description,
            "suite": pocket.suite,
            "allow_backtracking": pocket.allow_backtracking,
            "expires": model.iso(min(ends)) if ends else None,
            "actions": actions,
            "sources": self._sources(pocket, troubles),
            "troubles": list(dict.fromkeys(troubles)),
        }

    def names(
        self, entries: Sequence[AclEntry], pocket: str, action: str, troubles: list[str]
    ) -> list[str]:
        """Who may, by all of these entries."""
        found: set[str] = set()
        for entry in entries:
            found |= self._names(entry, pocket, action, troubles)
        for name in sorted(found):
            if not _local(name) and not _fits(name):
                troubles.append(f"{name!r}: not in remctld's list, whose names have no spaces")
        return sorted(found)

    def _names(
        self, entry: AclEntry, pocket: str, action: str, troubles: list[str]
    ) -> frozenset[str]:
        if not entry.command:
            answer = acl.ask(entry, pocket=pocket, action=action)
            troubles += [trouble.message for trouble in answer.troubles]
            return frozenset(answer.names)
        key = (str(entry.command), pocket, action)
        why = f"`{' '.join(key)}` was not asked yet"
        if self.may_ask():
            answer = acl.ask(entry, pocket=pocket, action=action)
            if not answer.failed:
                troubles += [trouble.message for trouble in answer.troubles]
                self.answers[key] = Held(time=self.now, names=tuple(sorted(answer.names)))
                return frozenset(answer.names)
            why = answer.troubles[0].message
        held = self._before.get(key)
        # An answer of the future was given before the clock was set back: nobody knows when.
        if held is None or not held.time <= self.now < held.time + self.life:
            troubles.append(f"{why}; it grants nothing")
            return frozenset()
        self.answers[key] = held
        if self.may_ask():
            end = model.iso(held.time + self.life)
            troubles.append(f"{why}; its answer of {model.iso(held.time)} counts until {end}")
        return frozenset(held.names)

    def _sources(self, pocket: Pocket, troubles: list[str]) -> str:
        """What `sources POCKET` prints; nothing while there is no publication."""
        try:
            if archive(self.site, pocket).publications.current() is None:
                return ""
            return hosting.client(self.site, pocket).text
        except (Fault, OSError) as fault:
            troubles.append(f"no sources stanza: {model.printable(str(fault))[:300]}")
            return ""


def _local(name: str) -> bool:
    """Whether this is a local account, whom no remctl call comes from."""
    return name.startswith("unix/") and "@" not in name


def _fits(name: str) -> bool:
    """Whether the name is one word: remctld refuses a whole list for a line with two."""
    return not any(c.isspace() for c in name) and not name.startswith("#")


def _submitters(pockets: Mapping[str, Any], administrators: Sequence[str]) -> str:
    """Everybody who may ask for something in some pocket, one a line.

    With `princ:`, so that a name with a colon is not taken for another kind of rule, nor one
    that is `ANYUSER` for everybody.
    """
    names = {
        name
        for pocket in pockets.values()
        for action in AT_THE_DOOR
        for name in pocket["actions"][action]
    } | set(administrators)
    return "".join(f"princ:{name}\n" for name in sorted(names) if not _local(name) and _fits(name))


def _as_json(answers: Mapping[Key, Held]) -> list[dict[str, Any]]:
    return [
        {"key": list(key), "time": held.time.isoformat(), "names": held.names}
        for key, held in sorted(answers.items())
    ]


def _read_answers(file: Path) -> dict[Key, Held]:
    """The answers of last time; none when the file is absent or damaged."""
    try:
        found = {}
        for value in files.read_json(file, limit=MAX_TABLE):
            program, pocket, action = map(str, value["key"])
            time = datetime.fromisoformat(value["time"])
            if time.tzinfo is None:
                return {}
            names = tuple(map(str, value["names"]))
            found[program, pocket, action] = Held(time=time, names=names)
        return found
    except (OSError, Fault, LookupError, TypeError, ValueError):
        return {}
