"""Errors people can act on: what, where, expected versus got, what to do next.

The command line turns every `BevcaskError` into one message and exit code 2.
"""


class BevcaskError(Exception):
    """Base of every error bevcask raises on purpose."""

    def __str__(self) -> str:
        return " ".join(str(argument) for argument in self.args)


class ConfigError(BevcaskError, ValueError):
    """The configuration or command line is wrong."""


class UnknownNameError(BevcaskError, LookupError):
    """A name is in no table; the message lists what is."""


class PlanError(BevcaskError, ValueError):
    """What a method needs and what a teacher offers do not meet."""


class TargetMismatchError(BevcaskError, ValueError):
    """A tensor is not what its spec says, or a spec is not what a method needs."""


class DataError(BevcaskError, OSError):
    """A dataset file or table is missing, truncated or inconsistent."""


class CheckpointError(BevcaskError, OSError):
    """A checkpoint is missing or belongs to another architecture."""


class CacheIncompleteError(BevcaskError, RuntimeError):
    """The cache is not sealed, or the shard asked for is not committed."""


class CacheIdentityError(BevcaskError, RuntimeError):
    """The cache was made by another teacher, config or dataset; the leaf is named."""


class CacheCorruptError(BevcaskError, OSError):
    """Bytes on disk are not the bytes that were committed."""


class StoreError(BevcaskError, OSError):
    """A store cannot be reached, read or written; what is committed there is not in doubt."""


class CacheBusyError(BevcaskError, RuntimeError):
    """Another process is at work on the same shards; host, pid and time are named."""


class TokenNotCachedError(BevcaskError, KeyError):
    """A sample token has no row in the cache."""


class DivergedError(BevcaskError, ArithmeticError):
    """A training loss is no longer a finite number."""


class DiskFullError(BevcaskError, OSError):
    """The store would not fit on the disk it is written to."""


class MissingDependencyError(BevcaskError, ImportError):
    """An optional package is missing; the message names the command that installs it."""


class PeerLostError(BevcaskError, RuntimeError):
    """Another process of the same training has ended; what it met is said by it alone."""


class LoaderError(BevcaskError, RuntimeError):
    """A loader process was killed, or the memory it shares is too small."""


class ClusterError(BevcaskError, RuntimeError):
    """Workers of a cluster died, or its scheduler is gone; what is committed is not in doubt."""


class Stopped(BaseException):
    """A signal asked the process to end, and it has done what it wanted to do before.

    Args:
        signal: its number.
        message: what is lost, and how to go on.
    """

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal

    def __reduce__(self) -> tuple[type["Stopped"], tuple[int, str]]:
        return type(self), (self.signal, str(self))
