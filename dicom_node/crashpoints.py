"""Named points at which a test lets the whole node die as in a power cut, to prove that it resumes.

Nothing happens unless the environment asks for it:

    DICOM_NODE_CRASH_AT     name of the point, such as `receive.stored`
    DICOM_NODE_CRASH_ODDS   one in so many passes dies, and not already the first
    DICOM_NODE_CRASH_ONCE   a file that is created before dying; while it exists nobody dies again
    DICOM_NODE_PID          the node's first process, which dies too when a child gets to the point
"""

import functools
import os
import random
import signal
from pathlib import Path


def reach(name: str) -> None:
    """Die here, without any cleaning up, if `name` is the point that the environment names."""
    if point() != name:
        return
    if random.randrange(int(os.environ.get("DICOM_NODE_CRASH_ODDS", "1"))):  # noqa: S311
        return
    once = os.environ.get("DICOM_NODE_CRASH_ONCE")
    if once is not None:
        try:
            Path(once).touch(exist_ok=False)
        except FileExistsError:
            return
    node = os.environ.get("DICOM_NODE_PID")
    if node is not None:
        os.kill(int(node), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


@functools.cache
def point() -> str | None:
    """Return the name in the environment, read once: every instance passes such points."""
    return os.environ.get("DICOM_NODE_CRASH_AT")
