"""Training the embedded model: a synthetic world, an autoencoder, a text-to-image model, and a judge of it.

Run `python -m sdcli.training --help`. Nothing here is needed to generate pictures.
"""
