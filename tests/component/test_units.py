"""The units: systemd understands them, and they are as strict as they say."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from invirtibuilder.cli.main import COMMANDS
from invirtibuilder.run import run
from tests.support.installed import ACCOUNTS, TOP, Installed, installed
from tests.support.units import DROP_INS, Unit, units, worker

UNKNOWN = "Unknown key 'DelegateSubgroup' in section [Service], ignoring."
"""What systemd before 254 says of the one setting that it does not know."""
BOUNDS = {
    **dict.fromkeys(("invirtibuilder", "signer", "gc", "fsck", "base-refresh", "metrics"), 1.5),
    "remctld": 3.0,
    **dict.fromkeys(("notifier", "fsck-mail", "worker@trusted", "worker@untrusted"), 7.0),
}
"""How exposed each may be, of 10, to systemd-analyze. Those with 7 start programs that are setuid,
and so have no system call filter, nor anything that comes with one."""
DOMAINS = ("trusted", "untrusted")
SERVICES = [name for name in units() if name.endswith(".service")]
ALL = [units()[name] for name in SERVICES if "@" not in name] + [worker(name) for name in DOMAINS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units with the names that they are installed with."""
    made = tmp_path_factory.mktemp("units")
    for unit in units().values():
        shutil.copy(unit.path, made / unit.name)
    shutil.copytree(DROP_INS, made / DROP_INS.name)
    return made


@pytest.fixture(scope="module")
def system(folder: Path) -> Iterator[Installed]:
    """An installed system with the units, and with the programs that they start."""
    with installed() as made:
        shutil.copytree(folder, made.path("/usr/lib/systemd/system"), dirs_exist_ok=True)
        nightly = made.path("/usr/share/invirtibuilder/fsck")
        nightly.mkdir()
        shutil.copy(TOP / "conf/fsck/nightly", nightly)
        yield made


def verified(system: Installed, *names: str) -> list[str]:
    """What systemd has against units, and what they need."""
    paths = [f"/usr/lib/systemd/system/{name}" for name in names]
    done = system.run("systemd-analyze", "verify", "--man=no", *paths, check=False)
    lines = done.err.decode().splitlines()
    return [line for line in lines if "invirtibuilder" in line and not line.endswith(UNKNOWN)]


@pytest.mark.root
def test_systemd_has_nothing_against_them(system: Installed) -> None:
    names = [name.replace("@.", "@trusted.") for name in units()]
    templates = [name.replace("@.", "@untrusted.") for name in units() if "@." in name]
    assert verified(system, *names, *templates) == []


@pytest.mark.root
def test_systemd_would_have_something_against_mistakes(system: Installed) -> None:
    text = units()["invirtibuilder.service"].path.read_text()
    bad = text.replace("ProtectHome=", "ProtectHouse=").replace("/usr/bin/", "/usr/bin/no-such-")
    system.path("/usr/lib/systemd/system/invirtibuilder-bad.service").write_text(bad)
    told = verified(system, "invirtibuilder-bad.service")
    assert any("Unknown key 'ProtectHouse'" in line for line in told)
    assert any("is not executable" in line for line in told)


def exposure(path: Path) -> float:
    """What systemd-analyze says of a service."""
    done = run(["systemd-analyze", "security", "--offline=yes", "--no-pager", path], check=False)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.text)
    assert found, done
    return float(found[1])


@pytest.mark.parametrize("name", BOUNDS)
def test_exposure(name: str, folder: Path) -> None:
    path = folder / f"invirtibuilder-{name}.service"
    if name == "invirtibuilder":
        path = folder / "invirtibuilder.service"
    elif "@" in name:
        shutil.copy(folder / "invirtibuilder-worker@.service", path)
    found = exposure(path)
    print(f"{path.name}: {found}")
    assert found < BOUNDS[name]


def test_exposure_without_any_of_it(folder: Path, tmp_path: Path) -> None:
    text = (folder / "invirtibuilder.service").read_text()
    path = tmp_path / "invirtibuilder.service"
    path.write_text(text[: text.index("CapabilityBoundingSet=")])
    assert exposure(path) > 8


def test_every_service_has_a_bound() -> None:
    names = {f"invirtibuilder-{name}.service" for name in BOUNDS} | {"invirtibuilder.service"}
    found = {name.replace("@.", f"@{domain}.") for name in SERVICES for domain in DOMAINS}
    assert found == names - {"invirtibuilder-invirtibuilder.service"}


@pytest.mark.parametrize("unit", ALL, ids=lambda unit: unit.name)
def test_what_they_start(unit: Unit) -> None:
    """Commands that there are, as accounts that there are."""
    words = unit.all("Service.ExecStart")
    if words[0] == "/usr/bin/invirtibuilder":
        assert words[1] in COMMANDS
    else:
        assert words[0] in ("/usr/sbin/remctld", "/usr/share/invirtibuilder/fsck/nightly")
    account = unit.one("Service.User")
    assert account in ACCOUNTS or (unit.name.endswith("remctld.service") and not account)
    if "worker" in unit.name:
        # Nothing of it is another domain's.
        assert words[words.index("--directory") + 1] == ACCOUNTS[account]
        assert unit.all("Service.ReadWritePaths")[-1] == ACCOUNTS[account]
    if "--listen" in words:
        name = unit.name.replace(".service", ".socket")
        name = re.sub("@.*[.]", "@.", name)
        listens = units()[name].one("Socket.ListenStream").replace("%i", unit.name[22:-8])
        assert words[words.index("--listen") + 1] == listens
        assert units()[name].one("Socket.SocketMode") == "0660"
        assert units()[name].one("Socket.SocketGroup") == "invirtibuilder"
        assert "Install.WantedBy" not in units()[name].settings, "the daemon starts it"


@pytest.mark.parametrize("unit", ALL, ids=lambda unit: unit.name)
def test_devices(unit: Unit) -> None:
    """None but those that do nothing; a worker's machines have KVM."""
    assert unit.one("Service.DevicePolicy") == "closed"
    kvm = ["/dev/kvm", "rw"] if "worker" in unit.name else []
    assert unit.all("Service.DeviceAllow") == kvm


def test_the_daemon_starts_all_sockets_of_its_own() -> None:
    daemon = units()["invirtibuilder.service"]
    ours = {name for name in units() if name.endswith(".socket") and "remctld" not in name}
    wanted = {re.sub("@.*[.]", "@.", name) for name in daemon.all("Unit.Wants")}
    assert wanted == ours
    assert set(daemon.all("Unit.Wants")) <= set(daemon.all("Unit.After"))


HOW = """
Type NotifyAccess ExecStart ExecReload KillMode Restart RestartSec RestartPreventExitStatus
WatchdogSec TimeoutStartSec TimeoutStopSec TasksMax MemoryMax LimitNOFILE OOMPolicy
OOMScoreAdjust Nice IOSchedulingClass CPUWeight IOWeight Delegate DelegateSubgroup
"""
LIFE = frozenset(HOW.split())
"""Settings that say how a service lives and what it may use up; all others say what it may do."""
LIVES: dict[str, dict[str, str]] = {
    "invirtibuilder": {
        "Service.Type": "notify",
        "Service.NotifyAccess": "main",
        "Service.Restart": "always",
        "Service.RestartSec": "5",
        "Service.RestartPreventExitStatus": "78",
        "Service.WatchdogSec": "5min",
        "Service.TimeoutStartSec": "30min",
        "Service.TimeoutStopSec": "10min",
        "Service.TasksMax": "1024",
        "Service.MemoryMax": "4G",
        "Service.LimitNOFILE": "16384",
        "Service.OOMScoreAdjust": "-500",
    },
    "signer": {
        "Unit.StartLimitIntervalSec": "0",
        "Service.Restart": "on-failure",
        "Service.RestartSec": "5",
        "Service.TasksMax": "128",
        "Service.MemoryMax": "1G",
    },
    "notifier": {
        "Unit.StartLimitIntervalSec": "0",
        "Service.Restart": "on-failure",
        "Service.RestartSec": "5",
        "Service.TasksMax": "512",
        "Service.MemoryMax": "2G",
    },
    "remctld": {
        "Unit.StartLimitIntervalSec": "0",
        "Service.Restart": "always",
        "Service.RestartSec": "5",
        "Service.TasksMax": "512",
        "Service.MemoryMax": "2G",
    },
    "worker@": {
        "Unit.StartLimitIntervalSec": "0",
        "Service.ExecReload": "/bin/kill -HUP $MAINPID",
        "Service.KillMode": "process",
        "Service.Restart": "on-failure",
        "Service.RestartSec": "10",
        "Service.Delegate": "pids memory cpu",
        "Service.DelegateSubgroup": "invirtibuilder",
        "Service.OOMPolicy": "continue",
        "Service.TasksMax": "infinity",
        "Service.LimitNOFILE": "65536",
        "Service.CPUWeight": "50",
        "Service.IOWeight": "50",
    },
    "base-refresh": {
        "Service.Type": "oneshot",
        "Service.TasksMax": "64",
        "Service.MemoryMax": "1G",
    },
    "metrics": {
        "Service.Type": "oneshot",
        "Service.Nice": "10",
        "Service.TimeoutStartSec": "5min",
        "Service.TasksMax": "64",
        "Service.MemoryMax": "1G",
    },
    "fsck-mail": {
        "Service.Type": "oneshot",
        "Service.TasksMax": "64",
        "Service.MemoryMax": "256M",
    },
    **{
        name: {
            "Service.Type": "oneshot",
            "Service.Nice": "10",
            "Service.IOSchedulingClass": "idle",
            "Service.TasksMax": "256",
            "Service.MemoryMax": "4G",
            "Service.LimitNOFILE": "16384",
        }
        for name in ("fsck", "gc")
    },
}
"""How each service lives: started again by itself, watched, bounded. A worker's memory and
processes are bounded by order, so the worker has no bound of its own."""
SOCKETS = {
    **{name: {"Socket.TriggerLimitIntervalSec": "0"} for name in ("signer", "notifier")},
    "worker@": {"Socket.TriggerLimitIntervalSec": "0", "Socket.Backlog": "16"},
    "remctld": {"Socket.Backlog": "128", "Socket.NoDelay": "true"},
}


def life(unit: Unit) -> dict[str, str]:
    """What a unit says about how it lives."""
    keys = {f"Service.{name}" for name in LIFE - {"ExecStart"}} | {"Unit.StartLimitIntervalSec"}
    keys |= {f"Socket.{name}" for name in ("TriggerLimitIntervalSec", "Backlog", "NoDelay")}
    return {key: " ".join(unit.settings[key]) for key in unit.settings if key in keys}


def short(name: str) -> str:
    """A unit's name without what all have."""
    return name.removeprefix("invirtibuilder-").rpartition(".")[0]


@pytest.mark.parametrize("name", [*SERVICES, *(n for n in units() if n.endswith(".socket"))])
def test_how_they_live(name: str) -> None:
    """Nothing that bounds, watches or restarts one is lost without somebody changing this."""
    table = SOCKETS if name.endswith(".socket") else LIVES
    assert life(units()[name]) == table[short(name)]


def test_what_is_started_again_always_is() -> None:
    """A failure that lasts for a while is waited out; only a configuration is not."""
    for unit in ALL:
        if restart := unit.one("Service.Restart"):
            assert restart in ("always", "on-failure")
            tries = unit.one("Unit.StartLimitIntervalSec") == "0"
            # By default it is five starts in ten seconds.
            assert tries or int(unit.one("Service.RestartSec") or 0) * 5 > 10, unit.name


def test_the_timers_work_is_as_confined_as_the_daemon() -> None:
    """In all that says what they may do, but that they write in fewer places and have fewer calls;
    they are no looser by what the daemon does not have."""
    daemon = units()["invirtibuilder.service"].settings
    told = {key: value for key, value in daemon.items() if key.startswith("Service.")}
    lists = ("Service.SystemCallFilter", "Service.ReadWritePaths")
    output = {"Service.StandardOutput", "Service.StandardError"}
    for name in ("gc", "fsck", "base-refresh"):
        unit = units()[f"invirtibuilder-{name}.service"]
        settings = {key: value for key, value in unit.settings.items() if "Service." in key}
        own = {key for key in settings if key.partition(".")[2] in LIFE} | output
        for key in told:
            if key.partition(".")[2] not in LIFE and key not in lists:
                assert settings.get(key) == told[key], (name, key)
        assert set(settings) - own <= set(told), name
        for path in unit.all(lists[1]):
            assert any(Path(path).is_relative_to(p) for p in told[lists[1]]), (name, path)
        assert settings[lists[0]][:2] == told[lists[0]][:2]
        calls = (set(" ".join(filters[lists[0]][2:]).split()) for filters in (settings, told))
        assert next(calls) <= next(calls)


def test_manual_pages() -> None:
    for unit in units().values():
        for word in unit.all("Unit.Documentation"):
            if (page := re.fullmatch(r"man:(invirtibuilder.*)\((\d)\)", word)) is not None:
                assert (TOP / f"debian/man/{page[1]}.{page[2]}").exists(), (unit.name, word)
