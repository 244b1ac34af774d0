from bevcask.training.loops import Steps


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
