"""The site's configuration: one YAML file to frozen values, all findings at once with file:line."""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import yaml

from invirtibuilder import configwords as words
from invirtibuilder import model, yamlread
from invirtibuilder.errors import Fault
from invirtibuilder.order import BASES_SIZE, CACHE_SIZE, LAYERS_SIZE, Limits
from invirtibuilder.settings import (
    ACTIONS,
    DEFAULT_SUFFIX,
    EVENTS,
    ISOLATIONS,
    AclEntry,
    Domain,
    ExtraSource,
    HookSettings,
    Pocket,
    Retention,
    Signing,
    Site,
)
from invirtibuilder.yamlread import Value

DAY = 24 * 3600.0
"""What clients may still be downloading is kept for a day at least."""
WEEK = 7 * DAY
VALID = 3600.0
"""What is signed again well before it runs out is valid for an hour at least."""


def load(file: Path) -> Site:
    """Read and check the whole file. Raises ConfigFault with every finding."""
    root, problems = yamlread.read(file)
    site = _site(root, file.absolute())
    _check_pockets(root, site)
    problems.raise_any()
    return site


class Current:
    """The configuration as it is now, for services; while it cannot be read, as it was."""

    def __init__(self, file: Path, log: Callable[[str], None]) -> None:
        self._file = file
        self._log = log
        self._lock = threading.Lock()
        self._mark = _mark(file)
        self._site = load(file)

    def __call__(self) -> Site:
        with self._lock:
            mark = _mark(self._file)
            if mark != self._mark:
                self._mark = mark
                try:
                    self._site = load(self._file)
                except (Fault, OSError) as error:
                    self._log(f"the configuration stays as it was: {error}")
            return self._site


def _mark(file: Path) -> object:
    """What differs when the file was changed or replaced."""
    with suppress(OSError):
        found = file.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return None


def _path(value: Value, base: Path, default: Path, *, must_exist: bool = False) -> Path:
    """A path; relative ones start at the configuration file's directory."""
    path = base / value.text(str(default))
    if must_exist and not value.absent:
        # What one service may not look at is another's: it cannot say that it is not there.
        with suppress(PermissionError):
            if not path.exists():
                value.problem(f"{path} does not exist")
    return path


def _site(root: Value, file: Path) -> Site:
    top = root.record("site", "domains", "pockets", "hooks", required=("site", "pockets"))
    keys = (
        *("name", "directory", "url", "git_url", "tagger", "signing"),
        *("doors", "max_push", "queue_group", "push_group", "acl_refresh", "reserve", "notifier"),
        *("signer", "administrators"),
    )
    site = top["site"].record(*keys, required=("name", "tagger", "signing"))
    base = file.parent
    directory = _path(site["directory"], base, base)
    tagger = site["tagger"].record("name", "mail", required=("name", "mail"))
    signing = _signing(site["signing"], base, directory / "gnupg")
    domains = _domains(top["domains"], directory)
    hooks = tuple(_hook(v, base) for v in top["hooks"].items())
    names = [hook.name for hook in hooks]
    for name in {n for n in names if names.count(n) > 1}:
        top["hooks"].problem(f"two hooks are called {name}; give one of them another `name`")
    _short(site["directory"], directory / "run/daemon.sock")
    notifier = _socket(site["notifier"], directory)
    common = Limits(reserve=site["reserve"].size(1 << 30))
    pockets = top["pockets"].members()
    return Site(
        file=file,
        name=site["name"].text("", words.site_name),
        directory=directory,
        url=site["url"].text(f"file:{directory}/archive", words.url),
        git_url=site["git_url"].text(str(directory)),
        tagger_name=tagger["name"].text("", words.person),
        tagger_mail=tagger["mail"].text("", words.mail),
        signing=signing,
        doors=site["doors"].texts((), words.account),
        queue_group=site["queue_group"].text("", words.site_name),
        push_group=site["push_group"].text("", words.site_name),
        max_push=site["max_push"].size(1 << 30) or 1 << 30,
        acl_refresh=site["acl_refresh"].duration(300) or 300,
        notifier=notifier,
        administrators=_who(site["administrators"], base, None, "file"),
        signer=_socket(site["signer"], directory),
        hooks=hooks,
        domains=domains,
        pockets={
            n: _pocket(n, v, base, domains, signing, common, notifier) for n, v in pockets.items()
        },
    )


def _signing(value: Value, base: Path, home: Path) -> Signing:
    keys = value.record("home", "key", "also", required=("key",))
    found = Signing(
        home=_path(keys["home"], base, home, must_exist=True),
        key=keys["key"].text("", words.fingerprint),
        also=keys["also"].texts((), words.fingerprint),
    )
    if len({found.key, *found.also}) <= len(found.also):
        keys["also"].problem("names a key twice; one signature of each is enough")
    return found


def _socket(value: Value, directory: Path) -> Path | None:
    """A service's socket; relative ones start at the site's directory."""
    if value.absent:
        return None
    path = directory / value.text()
    _short(value, path)
    return path


def _short(value: Value, socket: Path) -> None:
    """unix(7): the name of a socket has at most 107 bytes."""
    if len(os.fsencode(socket)) > 107:
        value.problem(f"too long for the name of a socket: {socket}")


def _domains(value: Value, directory: Path) -> dict[str, Domain]:
    found: dict[str, Domain] = {}
    block = 1
    for name, entry in value.members().items():
        _checked(entry, name, model.POCKET, "trust domain")
        keys = entry.record(
            *("socket", "directory", "cache_size", "layers_size", "bases_size", "jobs")
        )
        socket = _socket(keys["socket"], directory)
        jobs = _whole(keys["jobs"], 1, 1) or 1
        found[name] = Domain(
            name=name,
            socket=socket,
            directory=_path(keys["directory"], directory, directory / "work" / name),
            jobs=jobs,
            slots=range(0) if socket else range(block, block + jobs),
            cache_size=keys["cache_size"].size(CACHE_SIZE) or 0,
            layers_size=keys["layers_size"].size(LAYERS_SIZE) or 0,
            bases_size=keys["bases_size"].size(BASES_SIZE) or 0,
        )
        block += len(found[name].slots)
    directories = [domain.directory for domain in found.values()]
    if len(set(directories)) < len(directories):
        value.problem("two trust domains have one directory; what one builds must not meet another")
    work = directory / "work" / "default"
    return found or {
        "default": Domain(name="default", socket=None, directory=work, jobs=1, slots=range(1, 2))
    }


def _hook(value: Value, base: Path) -> HookSettings:
    keys = value.record(
        "name", "program", "events", "required", "environment", "timeout", required=("program",)
    )
    program = _path(keys["program"], base, Path("/nonexistent"), must_exist=True)
    events = keys["events"].texts(EVENTS, lambda e: words.one_of(e, EVENTS))
    environment = {k: v.text() for k, v in keys["environment"].members().items()}
    for name in environment:
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name) or name.startswith("INVIRTIBUILDER_"):
            keys["environment"].problem(f"not a variable for a hook: {name!r}")
    required = keys["required"].boolean(False)
    if required and "submitted" not in events:
        keys["required"].problem("a required hook must take the event `submitted`")
    return HookSettings(
        name=keys["name"].text(_hook_name(keys["name"], program), words.hook_word),
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


def _pocket(
    name: str,
    value: Value,
    base: Path,
    domains: Mapping[str, Domain],
    signing: Signing,
    common: Limits,
    notifier: Path | None,
) -> Pocket:
    _checked(value, name, model.POCKET, "pocket")
    keys = value.record(
        *("description", "suite", "components", "mirror", "extra_sources", "architectures"),
        *("branch", "codename", "allow_backtracking", "allow_takeover", "isolation", "vm"),
        *("trust_domain", "build_profiles", "build_options", "limits", "packages", "acl"),
        *("tag_format", "version_suffix", "max_queued", "max_hourly", "signing", "priority"),
        *("valid_for", "retention", "archive_keyring", "qemubuilder"),
        required=("suite",),
    )
    limits = _limits(keys["limits"], common)
    return Pocket(
        name=name,
        description=keys["description"].text(f"{name} packages"),
        suite=keys["suite"].text("", words.word),
        components=keys["components"].texts(("main",), words.word),
        mirror=keys["mirror"].text("", words.url),
        extra_sources=tuple(_extra(v, base) for v in keys["extra_sources"].items()),
        architectures=_architectures(keys["architectures"]),
        branch=keys["branch"].text(name, words.branch),
        codename=keys["codename"].text(name, words.word),
        allow_backtracking=keys["allow_backtracking"].boolean(False),
        allow_takeover=keys["allow_takeover"].boolean(False),
        isolation=keys["isolation"].choice("chroot", *ISOLATIONS),
        emulation=keys["vm"].record("emulation")["emulation"].boolean(False),
        qemubuilder=_qemubuilder(keys, base),
        domain=_domain(keys["trust_domain"], domains),
        profiles=keys["build_profiles"].texts((), words.profile),
        options=keys["build_options"].texts((), words.option),
        limits=limits,
        package_limits=_package_limits(keys["packages"], limits),
        signing=signing
        if keys["signing"].absent
        else _signing(keys["signing"], base, signing.home),
        archive_keyring=keys["archive_keyring"].boolean(False),
        acl=_acl(keys["acl"], base, notifier),
        tag_format=keys["tag_format"].text("debian/{version}", words.tag_format),
        suffix=keys["version_suffix"].text(DEFAULT_SUFFIX, words.suffix),
        max_queued=_whole(keys["max_queued"], None, 1),
        max_hourly=_whole(keys["max_hourly"], None, 1),
        valid_for=_long(keys["valid_for"], None, VALID),
        retention=_retention(keys["retention"]),
        priority=_whole(keys["priority"], 0, -1000) or 0,
    )


def _domain(value: Value, domains: Mapping[str, Domain]) -> str:
    domain = value.text(next(iter(domains)))
    if domain not in domains:
        value.problem(f"no such domain: {domain!r}; known: {', '.join(domains)}")
    return domain


def _qemubuilder(pocket: Mapping[str, Value], base: Path) -> Path | None:
    keys = pocket["qemubuilder"].record("config", "accept_weaker_isolation")
    file = _path(keys["config"], base, Path("/nonexistent"), must_exist=True)
    accepted = keys["accept_weaker_isolation"].boolean(False)
    if pocket["isolation"].text("chroot") != "qemubuilder":
        return None
    if keys["config"].absent:
        pocket["isolation"].problem("needs `qemubuilder: {config: FILE}`")
    if not accepted:
        pocket["isolation"].problem(
            "qemubuilder's machine has a network, and this one mounts as root what it has written:"
            " say `qemubuilder: {accept_weaker_isolation: true}`, or take `vm`"
        )
    for name in ("build_profiles", "build_options", "extra_sources"):
        if not pocket[name].absent:
            pocket[name].problem("is not handed to qemubuilder: its own configuration says it")
    return file


def _retention(value: Value) -> Retention:
    keys = value.record("publications", "time")
    return Retention(
        publications=_whole(keys["publications"], 10, 1) or 10,
        seconds=_long(keys["time"], WEEK, DAY) or WEEK,
    )


def _long(value: Value, default: float | None, least: float) -> float | None:
    """A duration that is not too short."""
    seconds = value.duration(default)
    if seconds is not None and seconds < least:
        value.problem(f"must be at least {least / 3600:g}h")
    return seconds


def _architectures(value: Value) -> tuple[str, ...]:
    found = value.texts(("amd64",), words.architecture)
    if len(found) != 1:
        value.problem("must be the worker's one architecture; several are not built yet")
    return found


def _extra(value: Value, base: Path) -> ExtraSource:
    keys = value.record(
        *("uri", "suites", "components", "key"), required=("uri", "suites", "components", "key")
    )
    return ExtraSource(
        uri=keys["uri"].text("", words.url),
        suites=keys["suites"].texts((), words.word),
        components=keys["components"].texts((), words.word),
        key=_path(keys["key"], base, Path("/nonexistent"), must_exist=True),
    )


def _whole(value: Value, default: int | None, low: int) -> int | None:
    number = value.number(default, low)
    return None if number is None else int(number)


def _package_limits(value: Value, pocket: Limits) -> dict[str, Limits]:
    """The limits of packages that have some of their own; the pocket's hold for the rest."""
    found = {}
    for name, entry in value.members().items():
        try:
            model.package_name(name)
        except Fault as fault:
            entry.problem(str(fault))
        found[name] = _limits(entry.record("limits")["limits"], pocket)
    return found


def _limits(value: Value, default: Limits) -> Limits:
    keys = value.record(
        *("time", "idle", "cpu_time", "memory", "processes", "disk", "file_size"),
        *("log", "result"),
    )
    cpu = keys["cpu_time"].duration(default.cpu_seconds)
    return Limits(
        seconds=keys["time"].duration(default.seconds) or default.seconds,
        idle_seconds=keys["idle"].duration(default.idle_seconds),
        cpu_seconds=None if cpu is None else math.ceil(cpu),
        memory=keys["memory"].size(default.memory),
        processes=_whole(keys["processes"], default.processes, 20),
        disk=keys["disk"].size(default.disk),
        file_size=keys["file_size"].size(default.file_size),
        log_size=keys["log"].size(default.log_size),
        result_size=keys["result"].size(default.result_size) or default.result_size,
        reserve=default.reserve,
    )


def _acl(value: Value, base: Path, notifier: Path | None) -> dict[str, tuple[AclEntry, ...]]:
    acl: dict[str, tuple[AclEntry, ...]] = dict.fromkeys(ACTIONS, ())
    for action, entry in value.record(*ACTIONS).items():
        acl[action] = _who(entry, base, notifier, "file", "command")
    return acl


def _who(value: Value, base: Path, notifier: Path | None, *kinds: str) -> tuple[AclEntry, ...]:
    """Principals, and sources of such of these kinds."""
    entries = []
    for item in value.items():
        where = f"{item.problems.file}:{item.line}"
        if isinstance(item.node, yaml.MappingNode):
            named = [(kind, key) for kind, key in item.record(*kinds).items() if not key.absent]
            if len(named) != 1:
                item.problem(f"needs {'either ' * (len(kinds) > 1)}`{'` or `'.join(kinds)}`")
                continue
            kind, key = named[0]
            path = _path(key, base, Path("/nonexistent"), must_exist=True)
            entries.append(
                AclEntry(where=where, notifier=notifier, **{kind: path})  # type: ignore[arg-type]
            )
        else:
            entries.append(AclEntry(principal=item.text("", model.principal), where=where))
    return tuple(entries)


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
