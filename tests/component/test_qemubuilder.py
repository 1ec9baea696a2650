"""What stands around the real qemubuilder, which tests/slow runs."""

from __future__ import annotations

import os
from pathlib import Path

from invirtibuilder.phases import qemubuilder
from invirtibuilder.run import run

COPY = """chown "$3:$4" "$1/"*
chgrp "$4" "$1/"*
for FILE in "$1"/*; do
  [ ! -f "$FILE" ] || cp -p "$FILE" "$2"
done
"""
"""What qemubuilder 0.89 does with the results, as root."""


def test_links_among_results_stay_links(tmp_path: Path) -> None:
    """What the machine has left must not lead qemubuilder to our files."""
    (tmp_path / "secret").write_text("secret")
    machine, result = tmp_path / "machine", tmp_path / "result"
    machine.mkdir()
    result.mkdir()
    (machine / "a_1.deb").symlink_to(tmp_path / "secret")
    (machine / "b_1.deb").write_text("a file")
    (machine / "b_1.deb").chmod(0o600)
    (machine / "c_1.deb").symlink_to("nowhere")
    places = qemubuilder.made(tmp_path / "place")
    env = {"PATH": f"{places / 'bin'}:/usr/bin:/bin"}
    ids = (str(os.getuid()), str(os.getgid()))
    # Of a link to nowhere, only the link itself can be given away.
    run(["/bin/sh", "-ec", COPY, "sh", machine, result, *ids], env=env)
    assert (result / "a_1.deb").is_symlink()
    (tmp_path / "secret").chmod(0o600)
    qemubuilder.readable(result)
    assert (result / "a_1.deb").is_symlink()
    assert (result / "b_1.deb").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_a_backing_file_has_a_format(tmp_path: Path) -> None:
    """As qemu-img has demanded since qemu 6.1; everything else is passed on as it is."""
    places = qemubuilder.made(tmp_path / "place")
    script = (places / "bin/qemu-img").read_text()
    shown = tmp_path / "qemu-img"
    shown.write_text(script.replace("/usr/bin/qemu-img", "echo"))
    shown.chmod(0o755)
    asked = ["create", "-b", "base.qemu", "-f", "qcow2", "a b.cow"]
    assert run([shown, *asked]).text == "create -F raw -b base.qemu -f qcow2 a b.cow"
    assert run([shown, "create", "-F", "qcow2", "-b", "x", "y"]).text == "create -F qcow2 -b x y"
    assert run([shown, "commit", "x"]).text == "commit x"
