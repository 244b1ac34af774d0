"""Whatever a table holds is text."""

from bevcask.notebook import html_table


def test_everything_is_escaped() -> None:
    bad, good = "<script>&", "&lt;script&gt;&amp;"
    table = html_table(bad, [bad], [[bad]], bad)
    assert bad not in table
    assert table.count(good) == 4


def test_numbers_are_rounded_and_at_the_right() -> None:
    table = html_table("title", (), [[1234567.891, 12, "word"]])
    assert '<td style="text-align:right">1,234,568</td>' in table
    assert '<td style="text-align:right">12</td>' in table
    assert '<td style="text-align:left">word</td>' in table
    assert "<thead>" not in table
