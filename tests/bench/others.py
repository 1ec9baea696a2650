"""What builds are measured against: sbuild with its tarball, and reprepro after it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from invirtibuilder.apt.signer import GpgSigner, create_key
from invirtibuilder.run import run
from invirtibuilder.sandbox.base import BaseSpec

LONG = 3600.0


@dataclass(frozen=True, kw_only=True)
class Sbuild:
    """`sbuild --chroot-mode=unshare` of a suite, from its tarball."""

    tarball: Path
    suite: str

    def build(self, dsc: Path) -> Path:
        """Build; the .changes, in a new directory."""
        folder = Path(tempfile.mkdtemp(dir=self.tarball.parent))
        for part in dsc.parent.iterdir():
            shutil.copy(part, folder)
        argv = ["sbuild", "--chroot-mode=unshare", f"--dist={self.suite}", "--arch-all"]
        argv += [f"--chroot={self.tarball}", "--verbose", "--no-run-lintian"]
        argv += ["--no-run-autopkgtest", "--no-run-piuparts"]
        with (folder / "log").open("wb") as log:
            run(
                [*argv, dsc.name],
                cwd=folder,
                env={"HOME": str(folder)},
                stdout=log,
                stderr=log,
                timeout=LONG,
            )
        (changes,) = folder.glob("*.changes")
        return changes


@contextmanager
def sbuild(spec: BaseSpec, kept: Path) -> Iterator[Sbuild]:
    """sbuild, installed if it is not, with a tarball of what our base is made of, in `kept`."""
    if not shutil.which("sbuild"):
        run(["apt-get", "-qy", "install", "--no-install-recommends", "sbuild"], timeout=LONG)
    with tempfile.TemporaryDirectory(prefix="ib-bench-sbuild-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        tarball = folder / "base.tar"
        if not kept.exists():
            (folder / "mirror.sources").write_text(spec.sources)
            argv = ["mmdebstrap", "--mode=unshare", "--variant=buildd", "--format=tar"]
            argv += [f"--include={','.join(spec.include)}", spec.suite]
            run([*argv, tarball, folder / "mirror.sources"], cwd=folder, timeout=LONG)
            tarball.rename(kept)
        tarball.symlink_to(kept)
        yield Sbuild(tarball=tarball, suite=spec.suite)


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository that reprepro signs itself, as most have it."""

    folder: Path
    signer: GpgSigner

    def include(self, changes: Path, source: str) -> None:
        """Replace a source by an upload."""
        argv = ["reprepro", f"--basedir={self.folder}", "--ignore=wrongdistribution"]
        env = {"GNUPGHOME": str(self.signer.gnupghome)}
        run([*argv, "removesrc", "dev", source], env=env)
        run([*argv, "include", "dev", changes], env=env)


@contextmanager
def repository(architecture: str) -> Iterator[Repository]:
    """An empty one."""
    with tempfile.TemporaryDirectory(prefix="ib-bench-", dir="/var/tmp") as name:
        home = Path(name, "gnupg")
        signer = GpgSigner(gnupghome=home, key=create_key(home, "Bench", "bench@example.org"))
        fields = {
            "Codename": "dev",
            "Architectures": f"{architecture} source",
            "Components": "main",
            "SignWith": signer.key,
        }
        (Path(name) / "conf").mkdir()
        text = "".join(f"{field}: {value}\n" for field, value in fields.items())
        (Path(name) / "conf/distributions").write_text(text)
        try:
            yield Repository(folder=Path(name), signer=signer)
        finally:
            signer.close()
