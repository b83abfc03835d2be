"""Batches: reading jobs, expanding them, finding out which are done, and making the others.

`read` reads job files; `expand` handles wildcards and matrices; `plan` turns jobs into recipes with an identity;
`ledger` records which are done; `making` makes pictures. Only `making` imports torch.
"""
