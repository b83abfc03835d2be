"""Training: the synthetic world, the stages of `sdcli train`, and a judge that measures the trained models.

Generating pictures does not need this package. `settings`, `order` and `imagefolder` import no large libraries.
"""
