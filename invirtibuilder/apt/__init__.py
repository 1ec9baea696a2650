"""A pocket's APT repository: reprepro's database, publications of it, signatures, stanzas."""
