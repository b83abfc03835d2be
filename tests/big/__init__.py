"""Models at their real sizes, with random weights. Run one by itself: `pytest -m slow tests/big/test_z_image.py -s`."""
