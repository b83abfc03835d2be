"""Making pictures on many machines, with Ray.

`maker` is the Maker: it assigns tasks to workers, and repeats those of workers that ended. `worker` runs in each worker
process. `wanted` finds models on a worker's machine by their digests, and `shipping` copies those that are missing.
`fleet` is the interface of a cluster, and `on_ray` the only module that imports Ray.
"""
