"""Imported by the fork server alone, as it starts: it leaves SIGTERM to the process it serves.

It ends when that process and all workers have let go of it. Workers take the signal back.
"""

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
