"""Models on this machine: names, paths, facts, digests, loading and exporting."""
