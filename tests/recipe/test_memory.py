import pytest

from llmkit.recipe.memory import bytes_of


@pytest.mark.parametrize(
    ("amount", "count"),
    [("20GB", 20 * 10**9), ("512 MiB", 512 * 2**20), ("1.5gb", 1_500_000_000), ("7B", 7), (123, 123), (None, None)],
)
def test_amounts(amount, count):
    assert bytes_of(amount) == count


@pytest.mark.parametrize("amount", ["", "20", "GB", "-1GB", "0GB", "20 gigabytes", "20GB!", "1e9B"])
def test_what_is_no_amount_says_what_is(amount):
    with pytest.raises(ValueError, match="expected an amount of memory"):
        bytes_of(amount)
