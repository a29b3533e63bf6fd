"""What a compiled program sends between devices, read from its HLO."""

import math
import re
from typing import NamedTuple

_KINDS = "all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|ragged-all-to-all|reduce-scatter"
_COLLECTIVE = re.compile(rf"= (?P<shapes>\S.*?) (?P<kind>{_KINDS})(-start)?\((?P<rest>.*)")
_SHAPE = re.compile(r"[a-z]+(?P<bits>\d*)\[(?P<dims>[\d,]*)\]")


class Collective(NamedTuple):
    """One instruction, which may carry several arrays at once.

    Attributes:
        kind: "all-reduce", "all-gather", …
        devices: how many exchange something with each other; 0 for a collective-permute.
        sizes: how many elements each array has, as one device holds it afterwards.
        num_bytes: of all of them.
    """

    kind: str
    devices: int
    sizes: tuple[int, ...]
    num_bytes: int


def collectives(compiled) -> list[Collective]:
    """All between more devices than one, in the order of the program; one in the body of a loop counts once."""
    found = [_collective(match) for match in _COLLECTIVE.finditer(compiled.as_text())]
    return [collective for collective in found if collective.devices != 1]


def _collective(match: re.Match) -> Collective:
    shapes = list(_SHAPE.finditer(match["shapes"]))
    sizes = tuple(math.prod(int(n) for n in shape["dims"].split(",") if n) for shape in shapes)
    widths = [max(1, int(shape["bits"] or 8) // 8) for shape in shapes]
    num_bytes = sum(size * width for size, width in zip(sizes, widths, strict=True))
    return Collective(match["kind"], _group_size(match["rest"]), sizes, num_bytes)


def _group_size(attributes: str) -> int:
    """Of `replica_groups={{0,1},{2,3}}`, `=[2,2]<=[4]` (groups, size) or `=mesh['a'=2,'b'=2] {'b'}`."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return listed[1].count(",") + 1
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(counted[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", named[2]))
    assert "source_target_pairs" in attributes, attributes
    return 0
