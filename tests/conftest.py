"""Before any test loads PyTorch: one thread in each process, since pytest starts as many processes as there are cores.

Processes that tests start inherit it. `import worldline` then chooses how threads wait.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import worldline  # noqa: F401
