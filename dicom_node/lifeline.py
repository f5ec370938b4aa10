"""The thread that ends a child process when its node ends, however the node ended.

A node that is killed cannot tell its children. A child that outlived it would hold the DICOM port,
or work for nobody. The pipe that ties every spawned process to its parent closes with the parent,
also on SIGKILL, and belongs to no thread (the signal of PR_SET_PDEATHSIG comes when the *thread*
that made the child ends, which is too early here).
"""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

ORPHANED = 70
"""Exit code of a child whose parent has gone."""


def end_with_parent() -> None:
    """End this process as soon as the process that spawned it ends; at once if it has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(
            target=_end_after, args=(parent.sentinel,), name="lifeline", daemon=True
        ).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(ORPHANED)
