"""Without these tests perplexities could not be compared: tokens left out or counted twice, or meaningless sizes."""

import pytest

from run_gpt.bench.perplexity import Score, check_sizes, windows
from run_gpt.errors import SetupError

SIZES = [(2, 10, 5), (10, 10, 9), (11, 10, 9), (101, 10, 3), (100, 10, 5), (1000, 256, 128), (57, 8, 1), (3, 2, 1)]


def scored(tokens, window, stride):
    return [i for cut in windows(tokens, window, stride) for i in range(cut.end - cut.scored, cut.end)]


@pytest.mark.parametrize(("tokens", "window", "stride"), SIZES)
def test_each_token_but_the_first_counts_once(tokens, window, stride):
    assert scored(tokens, window, stride) == list(range(1, tokens))


@pytest.mark.parametrize(("tokens", "window", "stride"), SIZES)
def test_a_window_is_no_longer_than_asked_and_a_later_one_gives_the_context_that_the_stride_leaves(
    tokens, window, stride
):
    for cut in windows(tokens, window, stride):
        assert cut.end - cut.start <= window
        if cut.start:
            assert cut.end - cut.scored - cut.start >= window - stride


def test_windows_that_do_not_overlap_leave_out_the_first_token_of_each():
    assert scored(31, 10, 10) == [i for i in range(30) if i % 10]


def test_perplexity_is_exp_of_the_mean_loss():
    assert Score(4, 4 * 2.0).perplexity == pytest.approx(7.38905609893065)


@pytest.mark.parametrize(
    ("tokens", "window", "stride", "named"),
    [(1, 8, 4, "two tokens"), (9, 1, 1, "--window 1"), (9, 99, 4, "--window 99"), (9, 8, 9, "--stride 9")],
)
def test_sizes_that_cannot_be_are_named(tokens, window, stride, named):
    with pytest.raises(SetupError, match=named):
        check_sizes(tokens, window, stride, context=64)
