"""`python3 -m invirtibuilder`."""

from __future__ import annotations

import sys

from invirtibuilder.cli.main import main

sys.exit(main())
