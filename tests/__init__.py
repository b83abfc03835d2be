"""Tests of sdcli."""

import os

# As sdcli itself does: several workers share the cores here, and threads that spin would keep them from each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
