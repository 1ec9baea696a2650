"""Slots: blocks of subordinate ids, who has which, and one base for all of them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from invirtibuilder.engine import older_bases
from invirtibuilder.errors import Cancelled, MachineFault, RoomFault
from invirtibuilder.files import locked, write_json
from invirtibuilder.order import BASES_SIZE
from invirtibuilder.sandbox import base as bases
from invirtibuilder.sandbox import helper, slotbase
from invirtibuilder.sandbox import ids as subordinate
from invirtibuilder.sandbox.base import Base, BaseSpec
from invirtibuilder.sandbox.check import self_check
from invirtibuilder.sandbox.ids import COUNT, Ids, finish, make_tree
from invirtibuilder.sandbox.slotbase import old_base, slot_base
from invirtibuilder.sandbox.slots import Slot, slots, taken
from invirtibuilder.sandbox.trees import digest_of
from tests.support.base import remove_bases

SPEC = BaseSpec(suite="tiny", architecture="amd64", sources="none")

CONTENT = """cd /tmp/it
mkdir -p usr/bin work/work; echo one >usr/bin/one; ln usr/bin/one usr/bin/twin; ln -s one usr/link
chmod 4755 usr/bin/one; touch -d @1600000000.123456789 usr/bin/one; chmod 0 work/work
echo two >two; chown 1000:1000 two; mknod gone c 0 0; mkdir opaque
python3 -c '
import os
os.setxattr("opaque", "user.overlay.opaque", b"y")
os.setxattr("two", "security.capability", bytes.fromhex("01000002000400" + 26 * "0"))'
"""
"""What is easily lost: hard links, modes, owners, fractions of seconds, whiteouts, attributes."""

SEEN = """cd /tmp/it; find . -printf '%p %m %U %G %T@ %n %y %l\\n' | sort
python3 -c '
import os
for name in ("opaque", "two"):
    print({a: os.getxattr(name, a).hex() for a in sorted(os.listxattr(name))})'"""


def inside(ids: Ids, tree: Path, program: str) -> str:
    """What a program that finds a tree at /tmp/it says, as root of these ids."""
    reader, writer = os.pipe()
    entered = helper.start(
        ids,
        ["/bin/sh", "-euc", program],
        directories={"it": tree},
        files={},
        output=writer,
        errors=2,
        env={},
    )
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    assert finish(entered, seconds=60) == 0
    return text


@pytest.fixture
def domain(tmp_path: Path) -> Iterator[Path]:
    """A worker's directory."""
    tmp_path.chmod(0o755)
    made = tmp_path / "domain"
    made.mkdir(mode=0o711)
    yield made
    for slot in slots(made):
        if slot.directory.exists():
            remove_bases(slot.ids, slot.directory / "bases")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[int]:
    with (tmp_path / "log").open("wb") as file:
        yield file.fileno()


def tiny(slot: Slot, made: str, log: int, content: int = 0, spec: BaseSpec = SPEC) -> Base:
    """A base as if mmdebstrap had made it."""
    place = slot.directory / "bases" / spec.key / made[:10]
    place.mkdir(parents=True)
    for name in ("root", "tools"):
        make_tree(slot.ids, place / name)
    inside(slot.ids, place / "root", f"{CONTENT}\necho {content} >number")
    inside(slot.ids, place / "tools", "mkdir /tmp/it/upper; mknod /tmp/it/upper/gone c 0 0")
    digest = digest_of(place / "root", slot.ids, log)
    write_json(place / "base.json", {"digest": digest, "made": made, "size": 1000})
    link = place.parent / "current"
    link.unlink(missing_ok=True)
    link.symlink_to(place.name)
    found = bases.current(spec, slot.directory / "bases")
    assert found
    return found


def of_slot(
    domain: Path,
    number: int,
    log: int,
    said: list[str],
    *,
    refresh: bool = False,
    keep: Sequence[str] | None = (),
    most: int = BASES_SIZE,
) -> Base:
    (slot,) = slots(domain, [number])
    return slot_base(
        SPEC,
        domain,
        slot.directory,
        slot.ids,
        log=log,
        say=said.append,
        refresh=refresh,
        keep=keep,
        most=most,
    )


def wanted(domain: Path, number: int, log: int, digest: str) -> Base | None:
    (slot,) = slots(domain, [number])
    return old_base(digest, domain, slot.directory, slot.ids, log=log, say=lambda _: None)


class TestBlocks:
    def test_they_are_counted_through_the_ranges(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "getuid", lambda: 0)
        file = tmp_path / "subuid"
        file.write_text(
            f"root:100000:{COUNT - 1}\n"  # too few
            f"other:200000:{COUNT}\n"
            f"root:300000:{2 * COUNT + 5}\nbad line\n"
            f"0:300000:{COUNT}\n"  # the same ids by the account's number
            f"0:{300000 + 3 * COUNT}:{COUNT}\n"
            f"root:0:{2 * COUNT}\n"  # with the account's own id
        )
        expected = [300000, 300000 + COUNT, 300000 + 3 * COUNT, COUNT]
        assert subordinate._blocks(file) == expected
        assert subordinate._blocks(tmp_path / "none") == []

    def test_too_few_are_a_fault_with_the_command_that_adds_them(self, tmp_path: Path) -> None:
        have = Ids.all_of_user()
        assert len(have) >= 2, "conf/quickstart --prepare gives two"
        assert not {b.first_uid for b in have} & {b.first_uid + COUNT - 1 for b in have}
        with pytest.raises(MachineFault, match=f"and block {len(have) + 2} is asked") as caught:
            slots(tmp_path, range(1, len(have) + 3))
        first, _, rest = caught.value.hint.removeprefix("usermod --add-subuids ").partition("-")
        assert int(first) >= max(b.first_uid for b in have) + COUNT
        assert int(rest.split(" ")[0]) == int(first) + 2 * COUNT - 1
        (problem,) = self_check(tmp_path, range(1, len(have) + 3))
        assert "usermod --add-subuids" in problem

    def test_every_one_has_a_folder_of_its_own(self, tmp_path: Path) -> None:
        found = slots(tmp_path)
        assert len({s.directory for s in found}) == len(Ids.all_of_user()) == len(found)
        assert slots(tmp_path, [2])[0].ids == Ids.of_user(2)


class TestTaken:
    def test_orders_at_once_have_different_ones(self, domain: Path) -> None:
        with taken(domain, [1, 2]) as one:
            with taken(domain, [1, 2]) as other:
                assert [one.number, other.number] == [1, 2]
                assert one.ids != other.ids
            with taken(domain, [1, 2]) as again:
                assert again == other

    def test_one_too_many_waits_for_its_turn(self, domain: Path) -> None:
        said = threading.Event()
        got: list[int] = []

        def wait() -> None:
            with taken(domain, [2], waiting=said.set) as slot:
                got.append(slot.number)

        with taken(domain, [2]):
            thread = threading.Thread(target=wait)
            thread.start()
            assert said.wait(30)
            assert not got
        thread.join(30)
        assert got == [2]

    def test_a_cancel_ends_the_waiting(self, domain: Path) -> None:
        with (
            taken(domain, [1]),
            pytest.raises(Cancelled),
            taken(domain, [1], stop=lambda: True),
        ):
            pass

    def test_who_is_killed_leaves_it_free(self, domain: Path) -> None:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            with taken(domain, [1]):
                os.write(writer, b"x")
                signal.pause()
        assert os.read(reader, 1) == b"x"
        with pytest.raises(Cancelled), taken(domain, [1], stop=lambda: True):
            pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with taken(domain, [1]) as slot:
            assert slot.number == 1
        os.close(reader)
        os.close(writer)


class TestBases:
    def test_a_slot_without_one_copies_it_with_all_there_is(self, domain: Path, log: int) -> None:
        one, two = slots(domain, [1, 2])
        first = tiny(one, "2026-01-01T00:00:00.000Z", log)
        said: list[str] = []
        copy = of_slot(domain, 2, log, said)
        assert said == ["base: a copy of the one in slot-1"]
        assert copy.directory.parent == two.directory / "bases" / SPEC.key
        assert (copy.digest, copy.made) == (first.digest, first.made)
        assert copy.root.stat().st_uid == two.ids.first_uid
        assert inside(two.ids, copy.root, SEEN) == inside(one.ids, first.root, SEEN)
        assert (copy.tools / "gone").is_char_device()
        # And has it from now on.
        assert of_slot(domain, 2, log, said) == copy
        assert len(said) == 1

    def test_a_newer_one_replaces_an_older_one(self, domain: Path, log: int) -> None:
        one, two = slots(domain, [1, 2])
        old = tiny(two, "2026-01-01T00:00:00.000Z", log)
        new = tiny(one, "2026-01-02T00:00:00.000Z", log)
        copy = of_slot(domain, 2, log, [])
        assert copy.made == new.made
        # The slot's holder, who alone could use it, has asked for the newer one.
        assert not old.directory.exists()
        assert {path.name for path in copy.directory.parent.iterdir()} == {
            "current",
            copy.directory.name,
        }
        assert of_slot(domain, 1, log, []) == new

    def test_older_ones_stay_that_are_needed(self, domain: Path, log: int) -> None:
        one, two = slots(domain, [1, 2])
        old = [tiny(two, f"2026-01-0{n}T00:00:00.000Z", log, n) for n in (1, 2, 3)]
        new = tiny(one, "2026-01-04T00:00:00.000Z", log, 4)
        said: list[str] = []
        keep = [old[0].digest, old[2].digest, new.digest]
        assert of_slot(domain, 2, log, said, keep=keep).digest == new.digest
        assert [base.directory.exists() for base in old] == [True, False, True]
        (found,) = said
        assert found.startswith("base: a copy")
        # Another slot that needs one of them has it as well, but not as its newest.
        base = wanted(domain, 1, log, old[0].digest)
        assert base
        assert base.directory.parent == one.directory / "bases" / SPEC.key
        assert digest_of(base.root, one.ids, log) == old[0].digest
        assert of_slot(domain, 1, log, said) == new
        assert wanted(domain, 1, log, old[0].digest) == base
        assert wanted(domain, 1, log, old[1].digest) is None
        assert wanted(domain, 2, log, new.digest) == of_slot(domain, 2, log, said)
        assert len(said) == 1

    def test_one_of_two_that_are_the_same_is_enough(self, domain: Path, log: int) -> None:
        one, two = slots(domain, [1, 2])
        kept = tiny(one, "2026-01-01T00:00:00.000Z", log, 1)
        assert tiny(two, "2026-01-01T00:00:00.000Z", log, 1).digest == kept.digest
        tiny(one, "2026-01-02T00:00:00.000Z", log, 2)
        of_slot(domain, 2, log, [], keep=[kept.digest])
        older = [bases.older(slot.directory / "bases" / SPEC.key) for slot in (one, two)]
        assert [[base.digest for base in each] for each in older] == [[kept.digest], []]

    @pytest.mark.parametrize("known", [True, False])
    def test_what_is_needed_has_room(self, domain: Path, log: int, known: bool) -> None:
        """While nobody knows what is needed the oldest go; else it is said that they are many."""
        one, two = slots(domain, [1, 2])
        old = [tiny(two, f"2026-01-0{n}T00:00:00.000Z", log, n) for n in (1, 2)]
        new = tiny(one, "2026-01-03T00:00:00.000Z", log, 3)
        said: list[str] = []
        keep = [base.digest for base in old] if known else None
        made = of_slot(domain, 2, log, said, keep=keep, most=1500)
        assert made.digest == new.digest
        assert [base.directory.exists() for base in old] == [known, True]
        told = "base: older ones, which are needed, have 2000 bytes; bases_size is 1500"
        assert said[1:] == ([told] if known else [])
        assert older_bases(domain) == (2000 if known else 1000)

    def test_what_is_needed_outlives_its_spec(self, domain: Path, log: int) -> None:
        """As when a pocket has another mirror."""
        one, two = slots(domain, [1, 2])
        before = dataclasses.replace(SPEC, sources="before")
        other, needed = (tiny(two, f"2025-01-0{n}T00:00:00.000Z", log, n, before) for n in (1, 2))
        place = needed.directory.parent
        os.utime(place, (1e9, 1e9))
        tiny(one, "2026-01-01T00:00:00.000Z", log, 3)
        of_slot(domain, 2, log, [], keep=None)
        assert other.directory.exists(), "nobody knows"
        tiny(one, "2026-01-02T00:00:00.000Z", log, 4)
        of_slot(domain, 2, log, [], keep=[needed.digest])
        assert [path.name for path in place.iterdir()] == [needed.directory.name]
        assert wanted(domain, 2, log, needed.digest) == needed
        copy = wanted(domain, 1, log, needed.digest)
        assert copy
        assert copy.directory == one.directory / "bases" / before.key / copy.directory.name
        assert digest_of(copy.root, one.ids, log) == needed.digest
        # Another slot has it now; and it is looked at with each new base.
        tiny(one, "2026-01-03T00:00:00.000Z", log, 5)
        of_slot(domain, 2, log, [], keep=[needed.digest])
        assert not place.exists()
        assert older_bases(domain) == copy.size + 2000 > 2000

    def test_one_that_nothing_is_built_in_goes_in_the_end(self, domain: Path, log: int) -> None:
        one, two = slots(domain, [1, 2])
        used = tiny(two, "2026-01-01T00:00:00.000Z", log).directory.parent
        others = [used.with_name(name) for name in ("b" * 64, "c" * 64, "d" * 64)]
        for other in others:
            (other / "it").mkdir(parents=True)
            (other / "current").symlink_to("it")
            for name in ("root", "tools"):
                make_tree(two.ids, other / "it" / name)
        for other in others[:2]:
            os.utime(other, (1e9, 1e9))
        tiny(one, "2026-01-02T00:00:00.000Z", log)
        with locked(domain / f"base-{others[0].name}.lock"):  # as who copies it has it
            of_slot(domain, 2, log, [])
        there = {path.name for path in used.parent.iterdir() if path.is_dir()}
        assert there == {used.name, others[0].name, others[2].name}

    def test_a_refresh_makes_one_whatever_the_others_have(
        self, domain: Path, log: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tiny(slots(domain, [1])[0], "2026-01-01T00:00:00.000Z", log)
        said: list[str] = []
        # No suite is called tiny.
        with pytest.raises(RoomFault, match="mmdebstrap made no base of tiny"):
            of_slot(domain, 2, log, said, refresh=True)
        assert said == ["base: mmdebstrap makes one of tiny, which takes a minute"]

    def test_who_waits_for_anothers_refresh_takes_that(
        self, domain: Path, log: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, _ = slots(domain, [1, 2])
        tiny(one, "2026-01-01T00:00:00.000Z", log)
        newest = slotbase._newest
        seen: list[object] = []

        def looked(spec: BaseSpec, place: Path) -> tuple[Base, Ids] | None:
            found = newest(spec, place)
            if not seen:  # the first look; before the second one somebody else has refreshed it
                tiny(one, "2026-01-02T00:00:00.000Z", log)
            seen.append(found)
            return found

        monkeypatch.setattr(slotbase, "_newest", looked)
        said: list[str] = []
        copy = of_slot(domain, 2, log, said, refresh=True)
        assert (copy.made, said) == (
            "2026-01-02T00:00:00.000Z",
            ["base: a copy of the one in slot-1"],
        )

    def test_a_copy_that_is_not_the_same_is_none(self, domain: Path, log: int) -> None:
        one, two = slots(domain, [1, 2])
        base = tiny(one, "2026-01-01T00:00:00.000Z", log)
        record = json.loads((base.directory / "base.json").read_text())
        write_json(base.directory / "base.json", {**record, "digest": "0" * 64})
        with pytest.raises(RoomFault, match="is not the same"):
            of_slot(domain, 2, log, [])
        assert list((two.directory / "bases" / SPEC.key).iterdir()) == []
