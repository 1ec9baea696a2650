"""Where submitted content is unpacked and run: caged, without network, within limits."""
