"""Proof that git, the archive and the records say the same, and the repair of what is safe."""
