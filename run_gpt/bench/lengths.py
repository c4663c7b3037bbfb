"""`Lengths`: a distribution of lengths, and its notation on the command line."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from run_gpt.errors import SetupError

FORMS = "N, uniform:LO:HI, normal:MEAN:SD or lognormal:MEDIAN:SIGMA"
_ARGUMENTS = {"fixed": 1, "uniform": 2, "normal": 2, "lognormal": 2}


@dataclass(frozen=True)
class Lengths:
    """Distribution of whole numbers >= 1. `lognormal` has median `a`; its logarithm has standard deviation `b`."""

    kind: str
    a: float
    b: float = 0.0

    @classmethod
    def parse(cls, text: str, option: str) -> Self:
        """Parse a text in one of FORMS. Raises SetupError, which names `option`."""
        parts = text.split(":")
        kind, numbers = ("fixed", parts) if len(parts) == 1 else (parts[0], parts[1:])
        try:
            values = [float(number) for number in numbers]
        except ValueError:
            values = []
        if len(values) != _ARGUMENTS.get(kind) or not all(0 <= value < 1e7 for value in values) or values[0] < 1:
            raise SetupError(f"{option} {text}: write {FORMS}, of at least 1")
        if kind == "uniform" and values[0] > values[1]:
            raise SetupError(f"{option} {text}: LO exceeds HI")
        return cls(kind, *values)

    def draw(self, rng: np.random.Generator) -> int:
        """Draw one length."""
        if self.kind == "uniform":
            return int(rng.integers(int(self.a), int(self.b), endpoint=True))
        if self.kind == "normal":
            return max(1, round(rng.normal(self.a, self.b)))
        if self.kind == "lognormal":
            return max(1, round(rng.lognormal(float(np.log(self.a)), self.b)))
        return int(self.a)
