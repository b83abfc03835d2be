"""Models on disk: their names, places, facts and digests, and loading and exporting them."""
