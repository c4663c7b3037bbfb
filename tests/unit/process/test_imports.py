"""Without the pause of Python's collector each start of a server would take a quarter longer."""

import gc

import pytest

from run_gpt.process.imports import without_collection


def test_the_collector_rests_in_the_block_and_works_after_it() -> None:
    with without_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_the_collector_works_again_after_a_failed_import() -> None:
    with pytest.raises(ImportError), without_collection():
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_the_user_has_stopped_stays_so() -> None:
    gc.disable()
    try:
        with without_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
