"""What is made of how several processes end; they themselves are in stages/test_ranks.py."""

import signal

import pytest

from bevcask.errors import DataError, LoaderError, PeerLostError, Stopped
from bevcask.training.spawn import judge

LOST = RuntimeError("Connection closed by peer")


def test_the_first_rank_speaks_for_all() -> None:
    assert judge([(1, {}, None), (0, {"step": 3}, None)], [0, 0]) == {"step": 3}


def test_what_others_follow_from_is_said() -> None:
    with pytest.raises(DataError, match="short"):
        judge([(0, None, LOST), (1, None, DataError("short"))], [0, 0])
    with pytest.raises(Stopped, match="saved"):
        judge([(0, None, LOST), (1, None, Stopped(signal.SIGTERM, "saved"))], [0, 0])
    with pytest.raises(DataError, match="short"):
        judge([(0, None, PeerLostError("gone")), (1, None, DataError("short"))], [0, 0])
    with pytest.raises(LoaderError, match=r"process 1 of 2 .* was killed"):
        judge([(0, None, LOST)], [0, -9])
    with pytest.raises(RuntimeError, match="closed by peer"):
        judge([(0, None, LOST), (1, None, LOST)], [0, 0])
