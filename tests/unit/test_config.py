"""The configuration: everything that is wrong, at once, each with its line."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from invirtibuilder import config, yamlread
from invirtibuilder.errors import ConfigFault

SITE = f"""\
site:
  name: test
  tagger: {{name: Test archive, mail: archive@test.invalid}}
  signing: {{key: {"A" * 40}}}
"""
POCKETS = """\
pockets:
  dev: {suite: bookworm}
"""


def write(folder: Path, text: str | bytes) -> Path:
    file = folder / "site.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def findings(folder: Path, text: str | bytes) -> list[tuple[int, str]]:
    """Line and message of each finding."""
    file = write(folder, text)
    with pytest.raises(ConfigFault) as caught:
        config.load(file)
    found = [
        re.fullmatch(rf"{re.escape(str(file))}:([0-9]+): (.*)", line)
        for line in str(caught.value).split("\n")
    ]
    assert all(found), str(caught.value)
    return [(int(match[1]), match[2]) for match in found if match]


def test_the_least_that_is_needed(tmp_path: Path) -> None:
    site = config.load(write(tmp_path, SITE + POCKETS))
    pocket = site.pockets["dev"]
    assert (pocket.branch, pocket.codename, pocket.domain) == ("dev", "dev", "default")
    assert (pocket.allow_backtracking, pocket.isolation) == (False, "chroot")
    assert all(entries == () for entries in pocket.acl.values())
    assert site.directory == tmp_path
    assert site.package_repository("greet") == tmp_path / "packages/greet.git"


def test_each_domain_of_ours_has_its_own_blocks_of_ids(tmp_path: Path) -> None:
    domains = "domains: {one: {jobs: 2}, far: {socket: s, jobs: 9}, two: {}}\n"
    text = SITE + domains + POCKETS.replace("bookworm", "bookworm, priority: -3")
    site = config.load(write(tmp_path, text))
    found = {name: (domain.jobs, domain.slots) for name, domain in site.domains.items()}
    assert found == {"one": (2, range(1, 3)), "far": (9, range(0)), "two": (1, range(3, 4))}
    assert site.pockets["dev"].priority == -3
    wrong = findings(tmp_path, SITE + "domains: {one: {jobs: 0}}\n" + POCKETS)
    assert [line for line, _ in wrong] == [5]


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    text = """\
site:
  name: a b
  tagger: {name: "a<b", mail: nobody}
  signing: {key: abc, home: nowhere}
  colour: red
hooks:
  - program: nowhere/hook
    events: [published, exploded]
    required: yes
    environment: {INVIRTIBUILDER_JOB: x}
    timeout: soon
domains:
  Upper: {}
pockets:
  dev:
    suite: [bookworm]
    allow_backtracking: maybe
    architectures: [amd64, "a b"]
    limits: {memory: lots, time: 0, processes: 3, file_size: -1}
    acl: {submit: [{file: nowhere}, {}, "a\\nb"], destroy: [x]}
    tag_format: debian
    version_suffix: "~x"
    isolation: hope
    trust_domain: none
  dev:
    suite: bookworm
  prod: {branch: dev, mirror: "ftp://x", branhc: x}
"""
    found = findings(tmp_path, text)
    lines = [line for line, _ in found]
    assert lines == sorted(lines)
    said = "\n".join(f"{line}: {message}" for line, message in found)
    for pattern in (
        "^2: name:",
        "^3: name:",
        "^3: mail:",
        "^4: key:",
        "^4: home: .*does not exist",
        "^5: unknown key 'colour'; known here:",
        "^7: program: .*does not exist",
        "^8: events.*exploded",
        "^10: .*not a variable for a hook",
        "^11: timeout: must be a duration",
        "^13: Upper: not a valid name",
    ):
        assert re.search(pattern, said, re.M), (pattern, said)


BAD_POCKET = [
    ("suite: [bookworm]", "must be text"),
    ("suite: a b", "not a suite"),
    ("suite: x, allow_backtracking: maybe", "must be true or false, not 'maybe'"),
    ('suite: x, architectures: ["a b"]', "not an architecture"),
    ("suite: x, isolation: qemubuilder", "needs `qemubuilder: {config: FILE}`"),
    ("suite: x, isolation: qemubuilder", "accept_weaker_isolation: true"),
    ("suite: x, isolation: qemubuilder, build_options: [a]", "not handed to qemubuilder"),
    ("suite: x, vm: {emulation: perhaps}", "must be true or false"),
    ("suite: x, limits: {memory: lots}", "must be a size"),
    ("suite: x, limits: {time: 0}", "must be more than 0"),
    ("suite: x, limits: {memory: 0G}", "must be more than 0"),
    ("suite: x, limits: {processes: 3}", "must be at least 20"),
    ("suite: x, limits: 5", "must be a mapping"),
    ("suite: x, limits: {disk: all}", "must be a size"),
    ("suite: x, packages: {Big: {limits: {time: 1h}}}", "not a valid package: 'Big'"),
    ("suite: x, packages: {big: {limits: {time: no}}}", "must be a duration"),
    ("suite: x, packages: {big: {suite: sid}}", "unknown key 'suite'; known here: limits"),
    ("suite: x, acl: {submit: [{file: nowhere}]}", "does not exist"),
    ("suite: x, acl: {submit: [{}]}", "needs either `file` or `command`"),
    ('suite: x, acl: {submit: ["a\\nb"]}', "not a valid principal"),
    ("suite: x, acl: {destroy: [x]}", "unknown key 'destroy'"),
    ("suite: x, tag_format: debian", "must hold {version} once"),
    ('suite: x, tag_format: "{version} {version}"', "must hold {version} once"),
    ('suite: x, version_suffix: "~x"', "must hold {timestamp}"),
    ("suite: x, isolation: hope", "must be one of chroot, vm, qemubuilder, not 'hope'"),
    ("suite: x, trust_domain: none", "no such domain"),
    ("suite: x, mirror: ftp://x", "not a URI"),
    ("suite: x, branhc: y", "unknown key 'branhc'"),
    ("suite: x, branch: a..b/../c", "not a branch name"),
    ("branch: x", "suite is missing"),
    ("suite: x, suite: y", "suite is given twice"),
    ("suite: x, build_options: [a b]", "not a build option"),
    ("suite: x, components: {}", "must be a list"),
    ("suite: x, extra_sources: [{uri: file:/x}]", "key is missing"),
]


@pytest.mark.parametrize(("pocket", "message"), BAD_POCKET)
def test_a_bad_pocket(tmp_path: Path, pocket: str, message: str) -> None:
    found = findings(tmp_path, SITE + f"# a line\npockets:\n  dev: {{{pocket}}}\n")
    assert any(message in text for _, text in found), found
    assert {line for line, _ in found} == {7}


@pytest.mark.parametrize("name", ["Dev", "a b", "../x", "1dev", "x", '"a\\0b"'])
def test_a_bad_name_for_a_pocket(tmp_path: Path, name: str) -> None:
    found = findings(tmp_path, SITE + f"pockets:\n  {name}: {{suite: x}}\n")
    assert "not a valid name for a pocket" in found[0][1]


def test_words_of_yaml_are_fine_as_names(tmp_path: Path) -> None:
    site = config.load(write(tmp_path, SITE + "pockets:\n  no: {suite: x}\n  null: {suite: x}\n"))
    assert list(site.pockets) == ["no", "null"]


def test_two_pockets_with_one_branch(tmp_path: Path) -> None:
    text = SITE + "pockets:\n  one: {suite: x}\n  two: {suite: x, branch: one}\n"
    assert findings(tmp_path, text) == [
        (7, "pockets one and two have one branch: one; each needs its own")
    ]


def test_pockets_and_hooks_given_twice(tmp_path: Path) -> None:
    found = findings(tmp_path, SITE + "pockets:\n  dev: {suite: x}\n  dev: {suite: x}\n")
    assert found == [(7, "dev is given twice")]
    (tmp_path / "hook").touch()
    hooks = "hooks:\n  - {program: hook}\n  - {program: hook}\n"
    found = findings(tmp_path, SITE + hooks + POCKETS)
    # They would share the state of their deliveries.
    assert len(found) == 1
    assert "hook" in found[0][1]


def test_an_account_that_does_not_exist(tmp_path: Path) -> None:
    text = SITE + "  doors: [nobody, no-such-account]\n" + POCKETS
    assert [message for _, message in findings(tmp_path, text)] == [
        "doors[1]: no such account: no-such-account"
    ]


def test_a_required_hook_takes_the_event_that_it_holds(tmp_path: Path) -> None:
    (tmp_path / "hook").touch()
    hooks = "hooks:\n  - {program: hook, events: [published], required: true}\n"
    assert "must take the event `submitted`" in findings(tmp_path, SITE + hooks + POCKETS)[0][1]


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "who").touch()
    site = config.load(
        write(tmp_path, SITE + "pockets:\n  dev: {suite: x, acl: {submit: [{file: who}]}}\n")
    )
    assert site.pockets["dev"].acl["submit"][0].file == tmp_path / "who"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "[]\n",
        "- site\n",
        "text\n",
        "5\n",
        "site:\npockets:\n",
        "site: []\npockets: []\n",
        "null\n",
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str) -> None:
    assert findings(tmp_path, text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfe", "utf-8"),
        (b"a: [\n", "site.yaml:2: "),
        (b"a: b: c\n", "site.yaml:1: "),
        (b"\tx: 1\n", "site.yaml:1: "),
        (b"a: \x00\n", "site.yaml"),
        (b"a: *nowhere\n", "site.yaml:1: "),
        (b"a: 1\n---\nb: 2\n", "site.yaml:2: "),
        (b"[" * 100_000, "recursion"),
        (b"{a: " * 100_000, "recursion"),
        (b"#" * (yamlread.MAX_BYTES + 1), "larger than"),
    ],
    ids=lambda value: value[:10],
)
def test_files_that_are_no_yaml(tmp_path: Path, data: bytes, message: str) -> None:
    file = write(tmp_path, data)
    with pytest.raises(ConfigFault) as caught:
        config.load(file)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


def test_no_file_a_directory_and_a_fifo(tmp_path: Path) -> None:
    for path in (tmp_path / "no", tmp_path):
        with pytest.raises(ConfigFault):
            config.load(path)


def test_a_bomb_is_small(tmp_path: Path) -> None:
    laughs = 'a: &a ["lol", "lol", "lol", "lol", "lol", "lol", "lol", "lol", "lol"]\n'
    for old, new in zip("abcdefgh", "bcdefghi", strict=True):
        laughs += f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    started = time.process_time()
    found = findings(tmp_path, laughs + SITE + "pockets: *i\n")
    assert time.process_time() - started < 2
    assert len(found) < 50
    # One that has itself.
    found = findings(tmp_path, SITE + "pockets: &p\n  dev: *p\n")
    assert len(found) < 50


def test_a_package_may_have_limits_of_its_own(tmp_path: Path) -> None:
    packages = "{big: {limits: {memory: 8G, time: 4h}}, libc++: {limits: {disk: 1T}}, plain: {}}"
    text = f"  dev: {{suite: x, limits: {{memory: 2G, disk: 5G}}, packages: {packages}}}\n"
    site = config.load(write(tmp_path, SITE + "pockets:\n" + text))
    found = site.pockets["dev"]
    assert found.limits_of("other") == found.limits_of("plain") == found.limits
    assert found.limits_of("big") == replace(found.limits, memory=8 << 30, seconds=4 * 3600)
    assert found.limits_of("libc++") == replace(found.limits, disk=1 << 40)
    assert found.limits.reserve == 1 << 30


def test_the_reserve_holds_for_all(tmp_path: Path) -> None:
    text = SITE.replace("site:\n", "site:\n  reserve: 3G\n", 1)
    pockets = "pockets:\n  dev: {suite: x, packages: {big: {limits: {time: 4h}}}}\n"
    found = config.load(write(tmp_path, text + pockets)).pockets["dev"]
    assert found.limits.reserve == found.limits_of("big").reserve == 3 << 30


def test_sizes_and_durations(tmp_path: Path) -> None:
    limits = "{memory: 4GiB, time: 1.5h, idle: 90, cpu_time: 2m, file_size: 5K, processes: 20}"
    text = SITE + f"pockets:\n  dev: {{suite: x, limits: {limits}}}\n"
    found = config.load(write(tmp_path, text)).pockets["dev"].limits
    assert (found.memory, found.seconds, found.idle_seconds) == (4 << 30, 5400, 90)
    assert (found.cpu_seconds, found.file_size, found.processes) == (120, 5 << 10, 20)
