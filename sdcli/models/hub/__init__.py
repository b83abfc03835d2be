"""Models from the Hugging Face hub: choosing the needed files, downloading them, and recording their checksums.

`pull` is the only part of sdcli that uses the network. It writes a lock file with the commit and the checksums:
`registry.locate` finds the pinned commit with it, and `sdcli models verify` checks the files.
"""
