"""What stands between the outside and the queue: few imports, no state of its own."""
