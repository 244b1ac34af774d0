"""Boxes of a batch, end to end and parted again."""

import torch

from bevcask.targets.ragged import kept, sample_of_box, scattered


def test_rows_are_kept_of_every_list() -> None:
    boxes = [torch.arange(6.0).view(3, 2), torch.zeros(0, 2), torch.full((2, 2), 9.0)]
    classes = [torch.tensor([4, 5, 6]), torch.zeros(0, dtype=torch.int64), torch.tensor([7, 8])]
    keep = torch.tensor([True, False, True, False, True])
    some, kinds = kept(keep, boxes, classes)
    assert [own.tolist() for own in some] == [[[0.0, 1.0], [4.0, 5.0]], [], [[9.0, 9.0]]]
    assert [own.tolist() for own in kinds] == [[4, 6], [], [8]]
    [none] = kept(torch.zeros(5, dtype=torch.bool), boxes)
    assert [own.shape for own in none] == [(0, 2)] * 3


def test_the_sample_of_each_box() -> None:
    boxes = [torch.zeros(2, 9), torch.zeros(0, 9), torch.zeros(1, 9)]
    assert sample_of_box(boxes, torch.device("cpu")).tolist() == [0, 0, 2]


def test_the_largest_and_the_smallest_stay_of_what_is_kept() -> None:
    values = torch.tensor([[1.0, 3.0], [2.0, 9.0]])
    cells = torch.tensor([[0, 2], [2, -7]])
    keep = torch.tensor([[True, True], [True, False]])
    assert scattered(values, cells, keep, 3, "amax").tolist() == [1.0, 0.0, 3.0]
    assert scattered(values, cells, keep, 3, "amin", 5).tolist() == [1.0, 5.0, 2.0]
