from bevcask.training.loops import Pass, Steps


def test_steps_go_on_where_a_checkpoint_was() -> None:
    def make(first: int) -> list[int]:
        return list(range(first, 5))

    steps = Steps(make, 5)
    taken = iter(steps)
    assert [next(taken), next(taken)] == [0, 1]
    resumed = Steps(make, 5)
    resumed.load_state_dict(steps.state_dict())
    assert list(resumed) == [2, 3, 4]
    assert len(resumed) == 5
    assert resumed.state_dict() == {"done": 5}


def test_a_pass_can_be_read_again() -> None:
    whole = Pass([1, 2, 3], 3)
    assert (list(whole), list(whole), len(whole)) == ([1, 2, 3], [1, 2, 3], 3)
