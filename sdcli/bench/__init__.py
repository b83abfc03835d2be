"""Measuring how fast pictures are made on this machine, also in comparison with diffusers' own pipelines."""
