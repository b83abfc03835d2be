"""Training: the synthetic world, the stages of `sdcli train`, and a judge of what comes of them.

Nothing here is needed to generate pictures. `settings`, `order` and `imagefolder` import nothing heavy.
"""
