"""Declaration of a setting. The command line, models.yml, `create_model` and the documents' tables are made from it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, get_type_hints

from run_gpt.errors import SetupError


class Panel(StrEnum):
    """Panels of the command line's help."""

    MODEL = "Model"
    SIZE = "Size"
    MEMORY = "Memory"
    SERVER = "Server"
    ACCESS = "Access"


@dataclass(frozen=True)
class Option:
    """Declaration of a setting, in the `Annotated` type of a configuration's field, beside its default."""

    help: str
    """Meaning, and the default if the field's is None."""
    panel: Panel | None = None
    """Panel of the command line's help; None: the command line has no such option."""
    least: float | None = None
    most: float | None = None
    flag: str | None = None
    """Option of the command line; default: made of the field's name."""
    metavar: str | None = None
    """Word for the value in the help; default: its type."""
    envvar: str | None = None
    """Environment variable that is read if the option is not given."""
    is_size: bool = False
    """True for a number of bytes, which may be written with a unit, such as 8GB."""
    by_position: bool = False
    """True when the default depends on the model's place among several; the field's default is for one model."""


def options_of(config: type[Any]) -> dict[str, Option]:
    """Return the declaration of each field, those of the class itself before those of its bases."""
    own = [name for cls in config.__mro__ for name in vars(cls).get("__annotations__", {})]
    hints = get_type_hints(config, include_extras=True)
    found = {name: getattr(hints[name], "__metadata__", ()) for name in own}
    return {name: data[0] for name, data in found.items() if data and isinstance(data[0], Option)}


def flag_of(name: str, option: Option) -> str:
    """Return a field's option of the command line; the field's name if there is none."""
    return option.flag or (f"--{name.replace('_', '-')}" if option.panel else name)


def check_bounds(config: Any, where: str = "") -> None:
    """Raise SetupError for a number outside its bounds. The message begins with `where`."""
    for name, option in options_of(type(config)).items():
        value, unit = getattr(config, name), " byte" if option.is_size else ""
        if value is None:
            continue
        if option.least is not None and value < option.least:
            raise SetupError(f"{where}{flag_of(name, option)} must be at least {option.least:g}{unit}, not {value:g}")
        if option.most is not None and value > option.most:
            raise SetupError(f"{where}{flag_of(name, option)} must be at most {option.most:g}{unit}, not {value:g}")
