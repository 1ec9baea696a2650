"""What a site's configuration says, as frozen values; `config` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from invirtibuilder import model
from invirtibuilder.order import BASES_SIZE, CACHE_SIZE, LAYERS_SIZE, Limits

ACTIONS = ("submit", "promote", "rollback", "cancel", "read")
EVENTS = ("submitted", "started", "failed", "published")
ISOLATIONS = ("chroot", "vm", "qemubuilder")
DEFAULT_SUFFIX = "~{pocket}+{timestamp}.g{shortid}"


@dataclass(frozen=True, kw_only=True)
class AclEntry:
    """Who may: one principal, a file of them, or a program that prints them."""

    principal: str = ""
    file: Path | None = None
    command: Path | None = None
    notifier: Path | None = None  # whose socket is asked to run the program; None: we run it
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
    jobs: int  # orders at once
    slots: range  # of a child: which blocks of the account's subordinate ids are its own
    cache_size: int = CACHE_SIZE  # bytes of downloads
    layers_size: int = LAYERS_SIZE  # bytes of layers in each slot
    bases_size: int = BASES_SIZE  # bytes of older bases in each slot that are no trouble


@dataclass(frozen=True, kw_only=True)
class Signing:
    """The keys that sign publications, by fingerprint, and the GnuPG home that has them."""

    home: Path
    key: str
    also: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How long what a pocket has published is kept after it was superseded.

    What is among the last `publications`, or was superseded less than `seconds` ago.
    """

    publications: int
    seconds: float


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
    emulation: bool  # whether machines may do without KVM
    qemubuilder: Path | None  # that isolation's configuration file
    domain: str
    profiles: tuple[str, ...]
    options: tuple[str, ...]
    limits: Limits
    package_limits: Mapping[str, Limits]
    signing: Signing
    archive_keyring: bool
    acl: Mapping[str, tuple[AclEntry, ...]]
    tag_format: str
    suffix: str
    max_queued: int | None
    max_hourly: int | None
    priority: int
    valid_for: float | None  # seconds; None: what is published is valid for ever
    retention: Retention

    def limits_of(self, package: str) -> Limits:
        """What a package's export and build may use here."""
        return self.package_limits.get(package, self.limits)

    def tag(self, version: str) -> str:
        """The name of the tag for a version, as DEP-14 mangles it."""
        return self.tag_format.format(version=model.tag_version(version))

    @property
    def keyring(self) -> str:
        """The name of the package with the pocket's keys."""
        return f"{self.name}-archive-keyring"

    @property
    def keyring_file(self) -> str:
        """Where that package has them."""
        return f"/usr/share/keyrings/{self.keyring}.asc"

    @property
    def environment(self) -> Mapping[str, object]:
        """Where and how its packages are built, by the configuration's keys."""
        return {
            "suite": self.suite,
            "components": self.components,
            "mirror": self.mirror,
            "extra_sources": self.extra_sources,
            "architectures": self.architectures,
            "isolation": self.isolation,
            "qemubuilder": str(self.qemubuilder or ""),
            "trust_domain": self.domain,
            "build_profiles": self.profiles,
            "build_options": self.options,
        }

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
    signing: Signing
    doors: tuple[str, ...]
    queue_group: str
    push_group: str
    max_push: int
    acl_refresh: float
    notifier: Path | None  # None: hooks and the programs of ACLs are run by the daemon
    administrators: tuple[AclEntry, ...]
    signer: Path | None  # None: the daemon has the keys
    hooks: tuple[HookSettings, ...]
    domains: Mapping[str, Domain]
    pockets: Mapping[str, Pocket]

    @property
    def warnings(self) -> list[str]:
        """What is allowed, and not wise."""
        found = []
        for domain in self.domains:
            here = [p for p in self.pockets.values() if p.domain == domain]
            loose = ", ".join(p.name for p in here if p.allow_backtracking)
            strict = ", ".join(p.name for p in here if not p.allow_backtracking)
            if loose and strict:
                found.append(
                    f"trust domain {domain} builds for {loose}, where any commit is accepted, and"
                    f" for {strict}; give them a trust domain each"
                )
        return found

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
    def queue_view(self) -> Path:
        """What `queue` shows: the jobs that are not over, in order, and why. Doors read it."""
        return self.directory / "run" / "queue.json"

    @property
    def alive(self) -> Path:
        """What the daemon says of itself when it starts: since when, and its version."""
        return self.directory / "run" / "daemon.json"

    @property
    def restoring(self) -> Path:
        """Here while the site is being made of a backup: no daemon may start."""
        return self.directory / "run" / "restoring"

    @property
    def pauses(self) -> Path:
        """What is paused; for the daemon to write and anybody to read."""
        return self.directory / "run" / "paused.json"

    @property
    def push_rules(self) -> Path:
        """What the repositories' hooks read: the pockets' branches and tag formats as JSON."""
        return self.directory / "run" / "push-rules.json"

    def package_repository(self, package: str) -> Path:
        return self.packages / f"{model.package_name(package)}.git"
