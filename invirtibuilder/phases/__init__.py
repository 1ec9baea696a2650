"""Phases: what a worker does for an order, each in a sandbox of its own."""
