"""The POCKET-archive-keyring package: made, submitted and kept current by the site itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from invirtibuilder.run import run
from invirtibuilder.sandbox.base import Base
from tests.support.packages import identity
from tests.support.place import until
from tests.support.sites import TestSite, made_site

NAME = "staging-archive-keyring"


def published(site: TestSite, version: str) -> dict[str, Any]:
    """The package as the pocket has it, once it is of this version."""

    def there() -> dict[str, Any] | None:
        content = site.json("pocket", "show", "staging")["content"]
        found = {c["package"]: c for c in content}.get(NAME, {})
        time.sleep(0.2)
        return found if found.get("version") == version else None

    found: dict[str, Any] = until(there, f"{NAME} {version} is not published")
    return found


def signers(site: TestSite) -> int:
    """How many keys have signed what clients of the pocket see."""
    release = site.directory / "archive/staging/dists/staging/InRelease"
    argv = ["gpg", "--homedir", str(site.directory / "gnupg"), "--status-fd", "1"]
    return run([*argv, "--verify", str(release)]).text.count("[GNUPG:] GOODSIG")


def test_the_pocket_has_its_keys_as_a_package(base: Base, layers: Path, tmp_path: Path) -> None:
    keys = f"/usr/share/keyrings/{NAME}.asc"
    with made_site(base, layers) as site:
        # Nobody but the site may submit here, and it needs no leave.
        site.configure(pockets__staging__archive_keyring=True, pockets__staging__acl={})
        assert site.cli("sources", "dev", "--keyring", check=False).code == 66
        with site.daemon():
            first = published(site, "1")
        public = site.directory / "archive/staging/key.asc"
        before = public.read_text()
        assert site.installs("staging", NAME, "--", "cat", keys).endswith(before.strip())
        # What has not changed is not made again.
        with site.daemon():
            pass
        assert len(site.json("status")) == 1

        made = site.json("key", "new", "staging")["fingerprint"]
        site.configure(site__signing__also=[made])
        with site.daemon():
            second = published(site, "2")
        assert second["commit"] != first["commit"]
        assert signers(site) == 2
        assert public.read_text() != before
        assert site.installs("staging", NAME, "--", "cat", keys).endswith(
            public.read_text().strip()
        )
        text = site.cli("sources", "staging", "--keyring").text
        assert f"\nSigned-By: {keys}" in text
        assert "BEGIN PGP" not in text

        # A client that has the new key only is content at once, though nothing new comes in.
        site.configure(site__signing__key=made, site__signing__also=[])
        site.configure(pockets__staging__archive_keyring=False)
        count = site.json("pocket", "show", "staging")["publication"]
        with site.daemon():
            until(lambda: site.json("pocket", "show", "staging")["publication"] > count)
        assert signers(site) == 1
        assert site.json("pocket", "show", "staging")["publication"] == count + 1

        bare = str(site.directory / f"packages/{NAME}.git")
        clone = str(tmp_path / "clone")
        run(["git", "clone", "-q", bare, clone])
        argv = ["git", "-C", clone, "-c", "core.hooksPath=/dev/null"]
        run([*argv, "commit", "-q", "--allow-empty", "-m", "mine"], env=identity())
        done = run([*argv, "push", "-q", bare, "HEAD:refs/heads/main"], check=False)
        assert done.code != 0
        assert b"the site itself writes this repository" in done.err
