"""Runs the scripts of hooks.d as the program does, on an event made on demand."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invirtibuilder.run import Done, run

HOOKS = Path(__file__).resolve().parents[2] / "hooks.d"
JOB = "20260102T030405.678901-abcd"


def event(name: str = "published", *, job: str = JOB, **fields: Any) -> dict[str, Any]:
    """An event as a hook gets it; `fields` add to it or replace."""
    return {
        "v": 1,
        "id": f"{job}:{name}",
        "event": name,
        "job": job,
        "time": "2026-01-02T03:04:05.678Z",
        "pocket": "dev",
        "package": "hello",
        "version": "1.0-1",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "principal": "alice@EXAMPLE.ORG",
        "state": name,
        **fields,
    }


def call(hook: str, told: Mapping[str, Any] | bytes, env: Mapping[str, str]) -> Done:
    """Run a script of hooks.d in a clean environment."""
    data = told if isinstance(told, bytes) else json.dumps(told).encode()
    return run([HOOKS / hook], stdin=data, env=env, check=False, timeout=30)


def certified(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that signs itself, and a server's context with it."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    run(["openssl", "req", "-x509", *curve, *names, "-keyout", key, "-out", cert])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context
