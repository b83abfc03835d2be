"""Training: the synthetic world, the stages of `sdcli train`, and a judge that measures the trained models.

Generating pictures does not need this package. `settings`, `run_config` and `imagefolder` import no large libraries.
"""
