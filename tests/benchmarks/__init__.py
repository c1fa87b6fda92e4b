"""Measurements of speed.  One thread for all libraries, set before torch and faiss are loaded."""

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
