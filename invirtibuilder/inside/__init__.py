"""Programs for inside a sandbox: Debian's Python and its standard library, nothing of ours."""
