"""Text-to-image latent diffusion that behaves like a Unix program. A package imports those below it, never one above.

cli.py      the command line: which commands there are, exit statuses
commands/   one file a command, and the options they share
serving/    the warm process           jobs/  batches of jobs           training/  training a model
making/     from a request to pictures on disk, in this process or by the warm one
planning/   from options to a whole recipe, warnings, dry runs, the recipe of a picture that is made again
models/     models on this machine: names, places, facts, digests, the hub, loading, exporting
config.py   what a user sets once
diffusion/  THE METHOD: the context y, noise, the denoising loop, the autoencoder
files/      pictures, maps, latents and metadata as files, written whole or not at all
recipe/     everything that determines a picture, and what can be checked of it
terminal/   the standard streams, a progress bar
errors.py   what can go wrong, each with a message, a hint and an exit status
kit/        the embedded model
"""

__version__ = "0.1.0"

# Raised with every release in which the same recipe gives other pixels on the same machine.
NUMERICS_VERSION = 1
