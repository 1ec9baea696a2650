"""`status --site` and `metrics`: of a site that is well, of each trouble, and to whom."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from invirtibuilder import acltable, hosting, maintenance, model
from invirtibuilder.jobs import Jobs
from invirtibuilder.run import run, started_group
from invirtibuilder.states import State
from tests.support import packages
from tests.support import place as places
from tests.support.listening import listens
from tests.support.place import ROOT, Place, until
from tests.support.running import published, put

LONG_AGO = "2020-01-02T03:04:05.678Z"
Up = tuple[Place, int]


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    """A site with a daemon, and its process, for tests that leave it as it was."""
    with places.canned() as (place, _):
        socket = "untrusted: {socket: run/worker.sock"
        place.edit(f"  {socket}}}", f"  {socket}, jobs: 2}}")
        with place.daemon() as daemon:
            yield place, daemon.pid


@pytest.fixture
def own() -> Iterator[Place]:
    """A site of one test, with pockets and without a daemon."""
    with places.place() as made:
        context = made.context
        hosting.ensure_site(made.site)
        for pocket in made.site.pockets.values():
            hosting.ensure_pocket(context, pocket)
        yield made


def health(place: Place, code: int = 7) -> dict[str, Any]:
    done = place.cli("status", "--site", "--json")
    assert done.code == code, done
    value = dict(json.loads(done.out))
    assert value["healthy"] is (code == 0)
    assert all(t["hint"] and t["message"] for t in value["troubles"])
    return value


def codes(place: Place) -> set[str]:
    """The troubles of a site whose daemon is down and whose worker is nobody."""
    found = {trouble["code"] for trouble in health(place)["troubles"]}
    assert {"daemon-down", "worker-down"} <= found
    return found - {"daemon-down", "worker-down"}


def samples(place: Place) -> dict[str, dict[tuple[str, ...], float]]:
    """By name and labels' values, as Prometheus reads them."""
    text = place.cli("metrics", check=True).out.decode()
    found: dict[str, dict[tuple[str, ...], float]] = {}
    families = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    for family in families:
        assert family.documentation
        assert family.type in ("gauge", "counter", "summary")
        for sample in family.samples:
            values = found.setdefault(sample.name.removeprefix("invirtibuilder_"), {})
            assert tuple(sample.labels.values()) not in values
            values[tuple(sample.labels.values())] = sample.value
    return found


def test_a_site_that_is_well(up: Up, tmp_path: Path) -> None:
    place, _ = up
    repo = packages.native(tmp_path / "greet", "greet")
    place.package(repo)
    published(place, put(place, "staging", repo))
    place.cli("fsck", check=True)
    place.cli("gc", check=True)
    found = health(place, 0)
    assert found["up"]
    assert found["version"] == "0.1.0"
    assert found["states"] == {"queued": 0, "running": 0, "waiting": 0}
    workers = {worker["domain"]: worker for worker in found["workers"]}
    expected = {"domain": "untrusted", "jobs": 2, "busy": 0, "answers": True, "child": False}
    assert workers["untrusted"] == {**expected, "slots": None}
    staging = found["pockets"][1]
    assert (staging["name"], staging["fsck"]["drift"]) == ("staging", 0)
    assert staging["base"]
    assert set(staging["keys"].values()) == {""}
    assert found["unseen"] == []
    lines = place.cli("status", "--site", check=True).text.splitlines()
    assert len(lines) < 25
    assert lines[0] == "site     test: healthy"
    assert "pocket   staging: fsck 20" in "\n".join(lines)
    told = samples(place)
    assert told["up"] == told["healthy"] == {(): 1}
    assert told["jobs_total"] == {("staging", "submit", "published"): 1}
    assert told["job_duration_seconds_count"] == {("staging", "submit", "published"): 1}
    assert 0 < told["job_duration_seconds_sum"]["staging", "submit", "published"] < 600
    assert told["worker_slots"] == {("trusted",): 1, ("untrusted",): 2}
    assert abs(told["fsck_time_seconds"]["staging",] - time.time()) < 600
    assert told["fsck_differences"]["staging",] == 0


def test_counters_outlive_everything_but_the_jobs(own: Place) -> None:
    jobs = Jobs(own.site.jobs)
    repo = packages.Repo(path=own.directory, name="greet", commit="0" * 40, version="1")
    for state in (State.CANCELLED, State.CANCELLED, State.REFUSED):
        job = own.job("dev", repo)
        job.move(State.RUNNING) if state != State.CANCELLED else None
        job.move(state)
    waiting = own.job("dev", repo)
    waiting.move(State.RUNNING)
    waiting.move(State.WAITING, "no mirror")
    expected = {("dev", "submit", "cancelled"): 2.0, ("dev", "submit", "refused"): 1.0}
    assert samples(own)["jobs_total"] == expected
    found = health(own)
    assert found["oldest"]["job"] == waiting.id
    assert found["states"] == {"queued": 0, "running": 0, "waiting": 1}
    cache = own.site.socket.parent / "tally.json"
    kept = cache.read_text()
    for text in ("", "{", "[]", '{"v": 1}', kept.replace('"counted": 4', '"counted": 7')):
        cache.write_text(text)
        assert samples(own)["jobs_total"] == expected, text
    assert cache.read_text() == kept
    waiting.move(State.CANCELLED)
    # One whose id says that it came before all others.
    early = jobs.directory / "20200102T030405.678901-abcd"
    (jobs.directory / waiting.id).rename(early)
    assert samples(own)["jobs_total"]["dev", "submit", "cancelled"] == 3


def test_the_output_is_replaced_whole(own: Place, tmp_path: Path) -> None:
    target = tmp_path / "site.prom"
    target.write_text("old")
    before = target.stat().st_ino
    done = own.cli("metrics", "--output", target, check=True)
    assert (done.out, os.listdir(tmp_path)) == (b"", ["site.prom"])
    assert target.stat().st_ino != before
    assert target.stat().st_mode & 0o777 == 0o644
    assert target.read_text().startswith("# HELP invirtibuilder_info ")


def old_notes(place: Place) -> None:
    value = {name: {"time": LONG_AGO, "drift": 0} for name in place.site.pockets}
    path = maintenance.file(place.site)
    path.write_text(json.dumps({"v": 1, "fsck": value, "gc": {}}))
    for name in place.site.pockets:
        os.utime(place.site.archive / name / "key.asc", (1, 1))


def drift(place: Place) -> None:
    maintenance.note(place.site, "fsck", model.utcnow(), {"dev": {"drift": 2, "level": "b"}})


def full(place: Place) -> None:
    place.edit("site:\n", "site:\n  reserve: 100000T\n")


def expiring(place: Place) -> None:
    home = place.directory / "new-home"
    home.mkdir(mode=0o700)
    gpg: list[str | Path] = ["gpg", "--homedir", home, "--batch", "--quiet", "--passphrase", ""]
    run([*gpg, "--quick-generate-key", "Old <old@example.org>", "ed25519", "sign", "10d"])
    armoured = run([*gpg, "--armor", "--export"]).out
    run(["gpgconf", "--homedir", home, "--kill", "all"])
    (place.site.archive / "prod/key.asc").write_bytes(armoured)


def old_base(place: Place) -> None:
    repo = packages.Repo(path=place.directory, name="greet", commit="0" * 40, version="1")
    job = place.job("dev", repo)
    job.write_fact("build", {"environment": {"base": "0" * 64}})
    job.move(State.CANCELLED)
    state = job.directory / "state.json"
    state.write_text(state.read_text().replace(job.status.since, LONG_AGO))


def many_bases(place: Place) -> None:
    socket = " trusted: {socket: run/worker.sock}"
    place.edit(socket, " trusted: {directory: work, bases_size: 2K}")
    for slot, name, size in ((1, "a", 1500), (1, "b", 1500), (1, "c", 5000), (2, "d", 500)):
        folder = place.directory / f"work/slot-{slot}/bases/key/{name}"
        folder.mkdir(parents=True)
        (folder / "base.json").write_text(json.dumps({"size": size}))
    # What is in use is none of the older ones.
    (place.directory / "work/slot-1/bases/key/current").symlink_to("c")


def failing_hook(place: Place) -> None:
    place.hook("echo no; exit 1")
    events = place.context.events
    events.queue("20260102T030405.678901-abcd", "failed", {})
    events.deliver()


def silent_notifier(place: Place) -> None:
    place.edit("site:\n", "site:\n  notifier: run/notify.sock\n")


def silent_signer(place: Place) -> None:
    place.edit("site:\n", "site:\n  signer: run/sign.sock\n")


def bad_administrators(place: Place) -> None:
    place.edit("site:\n", "site:\n  administrators: [{file: run}]\n")
    place.cli("acl", "compile", check=True)


def no_keyring(place: Place) -> None:
    place.edit("    trust_domain: un", "    archive_keyring: true\n    trust_domain: un")


def bad_acl(place: Place) -> None:
    place.cli("acl", "compile", check=True)
    table = place.site.socket.parent / "door.json"
    value = json.loads(table.read_text())
    value["pockets"]["dev"]["troubles"] = ["no answer"]
    table.write_text(json.dumps(value))


TROUBLES: dict[str, tuple[Callable[[Place], None], set[str]]] = {
    "nothing": (lambda place: None, set()),
    "a timer that does not run": (old_notes, {"fsck-old", "gc-old"}),
    "drift": (drift, {"drift"}),
    "a full disk": (full, {"disk-low"}),
    "a key": (expiring, {"key-expires"}),
    "a base": (old_base, {"base-old"}),
    "older bases": (many_bases, {"bases-large"}),
    "a hook": (failing_hook, {"hook-failing"}),
    "the notifier": (silent_notifier, {"notifier-down"}),
    "the signer": (silent_signer, {"signer-down"}),
    "a keyring": (no_keyring, {"keyring-missing"}),
    "an ACL": (bad_acl, {"acl"}),
    "the administrators' ACL": (bad_administrators, {"acl"}),
}


@pytest.mark.parametrize("what", TROUBLES)
def test_a_trouble(own: Place, what: str) -> None:
    make, expected = TROUBLES[what]
    make(own)
    assert codes(own) == expected
    text = own.cli("status", "--site").text
    assert all(f"[{code}]\n  hint: " in text for code in expected)


def written_over(path: Path, **values: str) -> str:
    """Change a JSON file as its writer would; what it was."""
    before = path.read_text()
    beside = path.with_name(".beside")
    beside.write_text(json.dumps({**json.loads(before), **values}))
    beside.rename(path)
    return before


def test_an_older_daemon_and_an_older_table(up: Up) -> None:
    """What only a daemon that is up can be blamed for."""
    place, _ = up
    for path, values, code in (
        (place.site.alive, {"version": "0.0.1"}, "daemon-old"),
        (acltable.table_file(place.site), {"written": LONG_AGO}, "acl-old"),
    ):
        before = written_over(path, **values)
        found = health(place)["troubles"]
        assert [trouble["code"] for trouble in found] == [code]
        assert any(value in found[0]["message"] for value in values.values())
        path.write_text(before)
    health(place, 0)


def test_a_worker_with_fewer_blocks_of_ids_than_orders_and_many_bases(own: Place) -> None:
    """A real one, which says so itself."""
    socket = "trusted: {socket: run/worker.sock"
    own.edit(f" {socket}}}", f" {socket}, jobs: 2, bases_size: 1K}}")
    path = own.directory / "run/worker.sock"
    # A place that the account of the ids may pass to, unlike the site's.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o711)
        base = Path(folder, "work/slot-1/bases/key/name/base.json")
        base.parent.mkdir(parents=True)
        base.write_text('{"size": 2048}')
        argv = [sys.executable, "-m", "invirtibuilder", "worker", "--listen", str(path)]
        argv += ["--directory", f"{folder}/work", "--slots", "1"]
        with started_group(argv, cwd=ROOT) as worker:
            until(lambda: listens(path) or worker.poll() is not None)
            found = [t for t in health(own)["troubles"] if t["code"] != "daemon-down"]
    assert [trouble["code"] for trouble in found] == ["few-slots", "bases-large"]
    assert "blocks of ids for 1 orders, not 2" in found[0]["message"]


def test_what_is_paused_and_not_taken_up(up: Up) -> None:
    place, daemon = up
    place.cli("pause", "dev", "--reason", "new disks", check=True)
    found = health(place, 0)
    assert [pause["reason"] for pause in found["paused"]] == ["new disks"]
    assert "paused   pocket dev is paused since" in place.cli("status", "--site").text
    assert samples(place)["paused"] == {("dev",): 1}
    place.cli("resume", "dev", check=True)
    os.kill(daemon, signal.SIGSTOP)
    entry = place.site.queue / "new" / "nonsense"
    entry.touch()
    os.utime(entry, (1, 1))
    assert [t["code"] for t in health(place)["troubles"]] == ["not-taken-up"]
    entry.unlink()
    os.kill(daemon, signal.SIGCONT)
