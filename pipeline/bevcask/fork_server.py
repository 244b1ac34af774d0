"""Imported by the fork server alone, as it starts: it leaves a scheduler's signals to others.

It ends when that process and all workers have let go of it. Workers take the signal back.
"""

import signal

for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
