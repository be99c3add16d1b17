"""Dense passage retrieval over HTTP: its own environment, and nothing of the rest of this repository."""

import os

# OpenMP's threads (torch, FAISS) then sleep while they wait. By default they spin, and beside another busy process the
# server is several times slower. It is read when the library is loaded, so it is set before anything imports one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
