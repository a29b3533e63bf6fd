"""What a compiled program sends between devices, read from its HLO."""

import math
import re
from typing import NamedTuple

_COLLECTIVE = re.compile(
    r"= (?P<shapes>\S.*?) (?P<kind>all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|"
    r"ragged-all-to-all|reduce-scatter)(-start)?\("
)
_SHAPE = re.compile(r"(?P<dtype>[a-z]+(?P<bits>\d*))\[(?P<dims>[\d,]*)\]")


class Collective(NamedTuple):
    """One instruction, which may carry several arrays at once.

    Attributes:
        kind: "all-reduce", "all-gather", …
        sizes: how many elements each array has, as one device holds it afterwards.
        num_bytes: of all of them.
    """

    kind: str
    sizes: tuple[int, ...]
    num_bytes: int


def collectives(compiled) -> list[Collective]:
    """All of them, in the order of the program's text; one in the body of a loop counts once."""
    return [_collective(match) for match in _COLLECTIVE.finditer(compiled.as_text())]


def _collective(match: re.Match) -> Collective:
    shapes = list(_SHAPE.finditer(match["shapes"]))
    sizes = tuple(math.prod(int(n) for n in shape["dims"].split(",") if n) for shape in shapes)
    widths = [max(1, int(shape["bits"] or 8) // 8) for shape in shapes]
    return Collective(match["kind"], sizes, sum(size * width for size, width in zip(sizes, widths, strict=True)))
