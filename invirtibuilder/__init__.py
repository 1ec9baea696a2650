"""Invirtibuilder: from a commit in git to a trusted Debian package."""

__version__ = "0.1.0"
