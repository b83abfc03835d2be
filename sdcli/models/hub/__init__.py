"""Models from the Hugging Face hub: which files of a repository are needed, getting them, and what was got.

`pull` is all of sdcli that reaches for a network. What it got is written to a lock file, by which `registry.locate`
finds the very revision again and `sdcli models verify` tells whether a file has changed since.
"""
