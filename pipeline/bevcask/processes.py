"""Cores to share out, and helper processes, which have no life of their own.

Signals that reach the whole group (Ctrl-C, a scheduler's SIGTERM or SIGUSR1) are for the process
they serve: it decides when it needs them no more. They end when it ends, also when it is killed;
the fork server they come from ends with the last of them.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading

FORK_SERVER = "bevcask.fork_server"
"""To be preloaded by a fork server: makes it ignore the signals of the group."""


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h
_LARGEST, _KEPT = 32 * 2**20, 64 * 2**20


def cores() -> int:
    """Return how many cores this process may use, its share where torchrun starts several."""
    here = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        here = len(os.sched_getaffinity(0))
    return max(1, here // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def keep_freed_memory() -> None:
    """Make the C library keep up to 64 MB of what is freed for what is allocated next; glibc alone.

    It gives large arrays back to the system, which clears every page of the next ones anew.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, _KEPT)


def end_with_parent() -> None:
    """Make this process end when the one that started it does or says so, and on no other word."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    def obey() -> None:
        if sys.platform == "linux":
            while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
                pass
            os._exit(0)

    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere nobody tells who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=obey, name="bevcask-obey", daemon=True).start()
    threading.Thread(target=watch, name="bevcask-watch", daemon=True).start()
