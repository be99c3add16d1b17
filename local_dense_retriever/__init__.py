"""Dense passage retrieval over HTTP. It has its own environment and imports nothing else of this repository."""

import os

# Makes OpenMP's threads (torch, FAISS) sleep while they wait. By default they spin, which makes the server several
# times slower beside another busy process. The variable is read on loading, so it is set before any such import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
