"""Many pictures from one file: reading jobs, multiplying them, telling which are done, and making the rest.

`read` knows files and nothing of models; `expand` the templates and products; `plan` turns jobs into recipes with an
identity of their own; `ledger` remembers which are done; `making` alone loads models. All but `making` import no torch.
"""
