"""The site's configuration: one YAML file to frozen values, all findings at once with file:line."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from invirtibuilder import model, yamlread
from invirtibuilder.order import Limits
from invirtibuilder.yamlread import Value

ACTIONS = ("submit", "promote", "rollback", "cancel", "read")
EVENTS = ("submitted", "started", "failed", "published")
DEFAULT_SUFFIX = "~{pocket}+{timestamp}.g{shortid}"


@dataclass(frozen=True, kw_only=True)
class AclEntry:
    """Who may: one principal, a file of them, or a program that prints them."""

    principal: str = ""
    file: Path | None = None
    command: Path | None = None
    where: str = field(default="", compare=False)  # file:line of the entry itself


@dataclass(frozen=True, kw_only=True)
class HookSettings:
    """A program that is told of events."""

    name: str
    program: Path
    events: tuple[str, ...]
    required: bool
    environment: Mapping[str, str]
    timeout: float


@dataclass(frozen=True, kw_only=True)
class ExtraSource:
    """An APT source besides the mirror, with the key that signs it."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    key: Path


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A trust domain: a worker account with its bases, layers and cache."""

    name: str
    socket: Path | None  # None: the worker runs as a child of the daemon
    directory: Path


@dataclass(frozen=True, kw_only=True)
class Pocket:
    """A line of development with its rules, base and APT repository."""

    name: str
    description: str
    suite: str
    components: tuple[str, ...]
    mirror: str
    extra_sources: tuple[ExtraSource, ...]
    architectures: tuple[str, ...]
    branch: str
    codename: str
    allow_backtracking: bool
    allow_takeover: bool
    isolation: str
    domain: str
    profiles: tuple[str, ...]
    options: tuple[str, ...]
    limits: Limits
    acl: Mapping[str, tuple[AclEntry, ...]]
    tag_format: str
    suffix: str
    max_queued: int | None
    max_hourly: int | None

    def tag(self, version: str) -> str:
        """The name of the tag for a version, as DEP-14 mangles it."""
        return self.tag_format.format(version=model.tag_version(version))

    def kept_ref(self, version: str) -> str:
        """The daemon's own ref that holds a published commit."""
        return f"refs/invirtibuilder/{self.name}/{model.tag_version(version)}"


@dataclass(frozen=True, kw_only=True)
class Site:
    """Everything that a site's configuration says."""

    file: Path
    name: str
    directory: Path
    url: str
    git_url: str
    tagger_name: str
    tagger_mail: str
    gnupghome: Path
    signing_key: str
    doors: tuple[str, ...]
    queue_group: str
    max_push: int
    acl_refresh: float
    hooks: tuple[HookSettings, ...]
    domains: Mapping[str, Domain]
    pockets: Mapping[str, Pocket]

    @property
    def queue(self) -> Path:
        return self.directory / "queue"

    @property
    def jobs(self) -> Path:
        return self.directory / "jobs"

    @property
    def packages(self) -> Path:
        return self.directory / "packages"

    @property
    def superproject(self) -> Path:
        return self.directory / "superproject.git"

    @property
    def archive(self) -> Path:
        return self.directory / "archive"

    @property
    def origs(self) -> Path:
        """The write-once store of upstream tarballs, by file name."""
        return self.directory / "origs"

    @property
    def events(self) -> Path:
        return self.directory / "events"

    @property
    def socket(self) -> Path:
        return self.directory / "run" / "daemon.sock"

    @property
    def push_rules(self) -> Path:
        """What the repositories' hooks read: the pockets' branches and tag formats as JSON."""
        return self.directory / "run" / "push-rules.json"

    def package_repository(self, package: str) -> Path:
        return self.packages / f"{model.package_name(package)}.git"


def load(file: Path) -> Site:
    """Read and check the whole file. Raises ConfigFault with every finding."""
    root, problems = yamlread.read(file)
    site = _site(root, file.absolute())
    _check_pockets(root, site)
    problems.raise_any()
    return site


def _path(value: Value, base: Path, default: Path, *, must_exist: bool = False) -> Path:
    """A path; relative ones start at the configuration file's directory."""
    path = base / value.text(str(default))
    if must_exist and not value.absent and not path.exists():
        value.problem(f"{path} does not exist")
    return path


def _site(root: Value, file: Path) -> Site:
    top = root.record("site", "domains", "pockets", "hooks", required=("site", "pockets"))
    keys = (
        *("name", "directory", "url", "git_url", "tagger", "signing"),
        *("doors", "max_push", "queue_group", "acl_refresh"),
    )
    site = top["site"].record(*keys, required=("name", "tagger", "signing"))
    base = file.parent
    directory = _path(site["directory"], base, base)
    tagger = site["tagger"].record("name", "mail", required=("name", "mail"))
    signing = site["signing"].record("home", "key", required=("key",))
    domains = _domains(top["domains"], directory)
    hooks = tuple(_hook(v, base) for v in top["hooks"].items())
    names = [hook.name for hook in hooks]
    for name in {n for n in names if names.count(n) > 1}:
        top["hooks"].problem(f"two hooks are called {name}; give one of them another `name`")
    _short(site["directory"], directory / "run/daemon.sock")
    return Site(
        file=file,
        name=site["name"].text("", _site_name),
        directory=directory,
        url=site["url"].text(f"file:{directory}/archive", _url),
        git_url=site["git_url"].text(str(directory)),
        tagger_name=tagger["name"].text("", _person),
        tagger_mail=tagger["mail"].text("", _mail),
        gnupghome=_path(signing["home"], base, directory / "gnupg", must_exist=True),
        signing_key=signing["key"].text("", _fingerprint),
        doors=site["doors"].texts((), _account),
        queue_group=site["queue_group"].text("", _site_name),
        max_push=site["max_push"].size(1 << 30) or 1 << 30,
        acl_refresh=site["acl_refresh"].duration(300) or 300,
        hooks=hooks,
        domains=domains,
        pockets={n: _pocket(n, v, base, domains) for n, v in top["pockets"].members().items()},
    )


def _short(value: Value, socket: Path) -> None:
    """unix(7): the name of a socket has at most 107 bytes."""
    if len(os.fsencode(socket)) > 107:
        value.problem(f"too long for the name of a socket: {socket}")


def _domains(value: Value, directory: Path) -> dict[str, Domain]:
    found = {}
    for name, entry in value.members().items():
        _checked(entry, name, model.POCKET, "trust domain")
        keys = entry.record("socket", "directory")
        socket = None if keys["socket"].absent else directory / keys["socket"].text()
        if socket:
            _short(keys["socket"], socket)
        found[name] = Domain(
            name=name,
            socket=socket,
            directory=_path(keys["directory"], directory, directory / "work" / name),
        )
    directories = [domain.directory for domain in found.values()]
    if len(set(directories)) < len(directories):
        value.problem("two trust domains have one directory; what one builds must not meet another")
    default = Domain(name="default", socket=None, directory=directory / "work" / "default")
    return found or {"default": default}


def _hook(value: Value, base: Path) -> HookSettings:
    keys = value.record(
        "name", "program", "events", "required", "environment", "timeout", required=("program",)
    )
    program = _path(keys["program"], base, Path("/nonexistent"), must_exist=True)
    events = keys["events"].texts(EVENTS, lambda e: _one_of(e, EVENTS))
    environment = {k: v.text() for k, v in keys["environment"].members().items()}
    for name in environment:
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name) or name.startswith("INVIRTIBUILDER_"):
            keys["environment"].problem(f"not a variable for a hook: {name!r}")
    required = keys["required"].boolean(False)
    if required and "submitted" not in events:
        keys["required"].problem("a required hook must take the event `submitted`")
    return HookSettings(
        name=keys["name"].text(_hook_name(keys["name"], program), _hook_word),
        program=program,
        events=events,
        required=required,
        environment=environment,
        timeout=keys["timeout"].duration(60) or 60,
    )


def _hook_name(value: Value, program: Path) -> str:
    """The program's own name, unless that cannot be one."""
    name = re.sub(r"[^a-z0-9_-]", "-", program.stem.lower())[:40]
    return name if re.match("[a-z0-9]", name) else f"hook-{value.line}"


def _pocket(name: str, value: Value, base: Path, domains: Mapping[str, Domain]) -> Pocket:
    _checked(value, name, model.POCKET, "pocket")
    keys = value.record(
        *("description", "suite", "components", "mirror", "extra_sources", "architectures"),
        *("branch", "codename", "allow_backtracking", "allow_takeover", "isolation"),
        *("trust_domain", "build_profiles", "build_options", "limits", "acl"),
        *("tag_format", "version_suffix", "max_queued", "max_hourly"),
        required=("suite",),
    )
    domain = keys["trust_domain"].text(next(iter(domains)))
    if domain not in domains:
        keys["trust_domain"].problem(f"no such domain: {domain!r}; known: {', '.join(domains)}")
    return Pocket(
        name=name,
        description=keys["description"].text(f"{name} packages"),
        suite=keys["suite"].text("", _word),
        components=keys["components"].texts(("main",), _word),
        mirror=keys["mirror"].text("", _url),
        extra_sources=tuple(_extra(v, base) for v in keys["extra_sources"].items()),
        architectures=_architectures(keys["architectures"]),
        branch=keys["branch"].text(name, _branch),
        codename=keys["codename"].text(name, _word),
        allow_backtracking=keys["allow_backtracking"].boolean(False),
        allow_takeover=keys["allow_takeover"].boolean(False),
        isolation=keys["isolation"].choice("chroot", "chroot"),
        domain=domain,
        profiles=keys["build_profiles"].texts((), _profile),
        options=keys["build_options"].texts((), _option),
        limits=_limits(keys["limits"]),
        acl=_acl(keys["acl"], base),
        tag_format=keys["tag_format"].text("debian/{version}", _tag_format),
        suffix=keys["version_suffix"].text(DEFAULT_SUFFIX, _suffix),
        max_queued=_whole(keys["max_queued"], None, 1),
        max_hourly=_whole(keys["max_hourly"], None, 1),
    )


def _architectures(value: Value) -> tuple[str, ...]:
    found = value.texts(("amd64",), _architecture)
    if len(found) != 1:
        value.problem("must be the worker's one architecture; several are not built yet")
    return found


def _extra(value: Value, base: Path) -> ExtraSource:
    keys = value.record(
        *("uri", "suites", "components", "key"), required=("uri", "suites", "components", "key")
    )
    return ExtraSource(
        uri=keys["uri"].text("", _url),
        suites=keys["suites"].texts((), _word),
        components=keys["components"].texts((), _word),
        key=_path(keys["key"], base, Path("/nonexistent"), must_exist=True),
    )


def _whole(value: Value, default: int | None, low: int) -> int | None:
    number = value.number(default, low)
    return None if number is None else int(number)


def _limits(value: Value) -> Limits:
    keys = value.record(
        *("time", "idle", "cpu_time", "memory", "processes", "file_size", "log", "result")
    )
    cpu = keys["cpu_time"].duration(None)
    return Limits(
        seconds=keys["time"].duration(3600) or 3600,
        idle_seconds=keys["idle"].duration(None),
        cpu_seconds=None if cpu is None else int(cpu),
        memory=keys["memory"].size(None),
        processes=_whole(keys["processes"], 5000, 20),
        file_size=keys["file_size"].size(8 << 30),
        log_size=keys["log"].size(1 << 30),
        result_size=keys["result"].size(8 << 30) or 8 << 30,
    )


def _acl(value: Value, base: Path) -> dict[str, tuple[AclEntry, ...]]:
    acl: dict[str, tuple[AclEntry, ...]] = dict.fromkeys(ACTIONS, ())
    for action, entry in value.record(*ACTIONS).items():
        entries = []
        for item in entry.items():
            where = f"{item.problems.file}:{item.line}"
            if isinstance(item.node, yaml.MappingNode):
                keys = item.record("file", "command")
                if keys["file"].absent == keys["command"].absent:
                    item.problem("needs either `file` or `command`")
                kind = "command" if keys["file"].absent else "file"
                path = _path(keys[kind], base, Path("/nonexistent"), must_exist=True)
                entries.append(AclEntry(where=where, **{kind: path}))  # type: ignore[arg-type]
            else:
                entries.append(AclEntry(principal=item.text("", model.principal), where=where))
        acl[action] = tuple(entries)
    return acl


def _check_pockets(root: Value, site: Site) -> None:
    """What no key alone can show: two pockets with one branch."""
    places = root.members().get("pockets")
    lines = {n: v.line for n, v in places.members().items()} if places else {}
    if not site.pockets:
        root.problem("a site needs at least one pocket")
    owners: dict[str, str] = {}
    for pocket in site.pockets.values():
        if pocket.branch in owners:
            root.problems.add(
                lines[pocket.name],
                f"pockets {owners[pocket.branch]} and {pocket.name} have one branch:"
                f" {pocket.branch}; each needs its own",
            )
        owners.setdefault(pocket.branch, pocket.name)


def _checked(value: Value, text: str, pattern: re.Pattern[str], what: str) -> None:
    if not pattern.fullmatch(text):
        value.problem(f"not a valid name for a {what}: a-z, 0-9 and -, a letter first")


def _one_of(value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"must be one of {', '.join(allowed)}, not {value!r}")
    return value


def _pattern(expression: str, what: str) -> Callable[[str], str]:
    compiled = re.compile(expression)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise ValueError(f"not {what}: {value!r}")
        return value

    return check


_word = _pattern(r"[A-Za-z0-9][A-Za-z0-9._+/-]{0,99}", "a suite, component or codename")
_site_name = _pattern(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "a name (letters, digits, . _ -)")
_hook_word = _pattern(r"[a-z0-9][a-z0-9_-]{0,39}", "a name for a hook (a-z, 0-9, - and _)")
_url = _pattern(r"(https?://|file:)[!-~]+", "a URI (http://, https:// or file:)")
_person = _pattern(r"[^<>\n\x00-\x1f]{1,100}", "a name without <, > and control characters")
_mail = _pattern(r"[A-Za-z0-9._+-]+@[A-Za-z0-9.-]+", "a mail address")
_fingerprint = _pattern(r"[0-9A-F]{40}", "a key's fingerprint (40 digits, upper case)")
_architecture = _pattern(r"[a-z0-9][a-z0-9-]{1,29}", "an architecture")
_branch = _pattern(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", "a branch name")
_profile = _pattern(r"[a-z0-9][a-z0-9.+-]*", "a build profile")
_option = _pattern(r"[a-z0-9][a-z0-9.+=,_-]*", "a build option")


def _account(value: str) -> str:
    try:
        pwd.getpwnam(value)
    except KeyError as error:
        raise ValueError(f"no such account: {value}") from error
    return value


def _tag_format(value: str) -> str:
    if value.count("{version}") != 1 or not re.fullmatch(
        r"[A-Za-z0-9._/-]*", value.replace("{version}", "")
    ):
        raise ValueError(f"must hold {{version}} once, else letters, digits, . _ / -: {value!r}")
    return value


def _suffix(value: str) -> str:
    rest = re.sub(r"\{(pocket|timestamp|shortid)\}", "", value)
    if not re.fullmatch(r"[A-Za-z0-9.+~]*", rest) or "{timestamp}" not in value:
        raise ValueError(
            "must hold {timestamp}; besides {pocket}, {shortid}, letters, digits, . + ~ only:"
            f" {value!r}"
        )
    return value
