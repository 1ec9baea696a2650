"""Every way out that we know of: open on the machine, closed in each phase of each isolation."""

from __future__ import annotations

import json

import pytest

from invirtibuilder.sandbox.base import Base
from tests.escape.conftest import Answers
from tests.escape.expected import ISOLATIONS, PROBES, WITHOUT, Probe

PHASES = {
    "export": {"export/root/unpacking-the-order", "export/build/the-export"},
    "resolve": {"resolve/root/apt-get-update", "resolve/root/finding-the-build-dependencies"},
    "install": {"install/root/installing-the-build-dependencies"},
    "build": {"build/build/dpkg-source--x", "build/build/dpkg-buildpackage"},
}
SUBMITTED = {"install/root/maintainer-script", "build/build/debian-rules"}
"""Where it is submitted content itself that starts the probes."""

PROXIED = {"resolve/root/apt-get-update"}

PASSES = {"proxy port", "proxy: the mirror"}
"""What a command with the proxy may do."""


def marked(probe: Probe) -> object:
    marks = [pytest.mark.root] if "ROOT" in probe.flags else []
    return pytest.param(probe, marks=marks, id=probe.name)


@pytest.mark.parametrize("probe", [marked(probe) for probe in PROBES.values()])
def test_a_probe_succeeds_on_the_machine(probe: Probe, controls: dict[str, str]) -> None:
    """Or the machine has no such thing: a probe that never succeeds shows nothing."""
    if probe.name in WITHOUT and WITHOUT[probe.name]():
        assert controls[probe.name] != "open"
    else:
        assert controls[probe.name] == "open"


def test_what_a_machine_may_be_without_is_little(controls: dict[str, str]) -> None:
    assert PROBES.keys() >= WITHOUT.keys()
    assert list(controls) == list(PROBES), "the table is not read as the compiler does"
    assert len(PROBES) > 150
    assert sum(missing() for missing in WITHOUT.values()) < 12


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_is_closed(phase: str, answers: Answers, isolation: str) -> None:
    labels = {label for label in answers if label.startswith(f"{phase}/")}
    assert labels >= PHASES[phase]
    wrong = {
        (label, name): verdict
        for label in labels
        for name, verdict in answers[label].items()
        if not accepted(PROBES[name], label, verdict, isolation)
    }
    assert not wrong


def accepted(probe: Probe, label: str, verdict: str, isolation: str) -> bool:
    """Whether a sandbox may answer this."""
    if probe.name in ISOLATIONS[isolation] or not probe.belongs(label):
        return True
    if label in PROXIED and probe.name in PASSES:
        return verdict == "open"
    return verdict in probe.answers


def test_submitted_content_tried_them(answers: Answers) -> None:
    assert answers.keys() >= SUBMITTED
    assert all(answers[label].keys() == PROBES.keys() for label in answers)


def test_the_proxy_itself_refuses(answers: Answers) -> None:
    for label in PROXIED:
        found = {n: v for n, v in answers[label].items() if n.startswith("proxy: ")}
        assert found.pop("proxy: the mirror") == "open"
        assert len(found) == 8
        assert set(found.values()) == {"denied: 403"}


def test_only_the_build_is_over_what_was_installed(log: bytes, base: Base) -> None:
    """What a maintainer script leaves, an apt.conf for one, is never in reach of other phases."""
    found: dict[str, set[str]] = {}
    for line in log.decode().splitlines():
        if line.startswith("LOWERS "):
            _, label, text = line.split(" ", 2)
            found.setdefault(label.partition("/")[0], set()).update(json.loads(text))
    root, tools = str(base.root.resolve()), str(base.tools.resolve())
    assert found["resolve"] == found["install"] == {root}
    assert found["export"] == {tools, root}
    (layer,) = found["build"] - {tools, root}
    assert "/slot-1/layers/" in layer
