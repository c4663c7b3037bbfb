"""Without these, each start of a server would take a third longer."""

import contextlib
import gc
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from run_gpt.process.imports import deferred, large_imports


def test_the_collector_rests_in_the_block_and_works_after_it() -> None:
    with large_imports():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_the_collector_works_again_after_a_failed_import() -> None:
    with pytest.raises(ImportError), large_imports():
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_the_user_has_stopped_stays_so() -> None:
    gc.disable()
    try:
        with large_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def _package(folder: Path, name: str, code: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)
    (folder / name / "part.py").write_text("SIX = 6\n")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages, all of whose modules are forgotten after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_deferred_package_runs_when_something_of_it_is_used(packages: Path) -> None:
    _package(packages, "heavy_one", "SEVEN = 7\nprint('runs')\n")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        with deferred(("heavy_one",)):
            import heavy_one
            from heavy_one.part import SIX
        assert (SIX, heavy_one.part.SIX, printed.getvalue()) == (6, 6, "")
        assert (heavy_one.SEVEN, heavy_one.SEVEN) == (7, 7)
    assert printed.getvalue() == "runs\n"
    with pytest.raises(AttributeError):
        heavy_one.EIGHT  # noqa: B018
    assert type(heavy_one) is ModuleType


def test_a_deferred_package_may_put_another_module_in_its_place(packages: Path) -> None:
    _package(packages, "heavy_two", "import sys, types\nsys.modules[__name__] = types.SimpleNamespace(A=1, B=2)\n")
    with deferred(("heavy_two",)):
        import heavy_two
    assert (heavy_two.A, heavy_two.B) == (1, 2)


def test_a_deferred_package_that_fails_does_so_at_each_use(packages: Path) -> None:
    _package(packages, "heavy_three", "import no_such_module\n")
    with deferred(("heavy_three",)):
        import heavy_three
    for _ in range(2):
        with pytest.raises(ImportError, match="no_such_module"):
            heavy_three.A  # noqa: B018


def test_only_the_block_defers(packages: Path) -> None:
    _package(packages, "heavy_four", "A = 1\n")
    with deferred(("heavy_four",)):
        pass
    import heavy_four

    assert vars(heavy_four)["A"] == 1
