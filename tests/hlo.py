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
        in_loop: whether it is in the body of a loop, or in what that calls.
    """

    kind: str
    devices: int
    sizes: tuple[int, ...]
    num_bytes: int
    in_loop: bool


def collectives(compiled) -> list[Collective]:
    """All between more devices than one, in the order of the program; one in the body of a loop counts once."""
    computations = _computations(compiled.as_text())
    loops = _in_loops(computations)
    found = [
        _collective(match, name in loops) for name, text in computations.items() for match in _COLLECTIVE.finditer(text)
    ]
    return [collective for collective in found if collective.devices != 1]


def _computations(text: str) -> dict[str, str]:
    """The name of each computation → its instructions. They are indented; its head and its closing brace are not."""
    parts = re.split(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _in_loops(computations: dict[str, str]) -> set[str]:
    """The names of those that run once a turn of some loop."""
    reached, found = set(), {name for text in computations.values() for name in re.findall(r"body=%?([\w.\-]+)", text)}
    while found:
        reached |= found
        called = {name for caller in found for name in re.findall(r"%([\w.\-]+)", computations[caller])}
        found = (called & computations.keys()) - reached
    return reached


def _collective(match: re.Match, in_loop: bool) -> Collective:
    # What starts an asynchronous one may list its operands first: ((f32[8]), f32[32]).
    results = match["shapes"].partition("), ")[2] if match["shapes"].startswith("((") else match["shapes"]
    shapes = list(_SHAPE.finditer(results))
    sizes = tuple(math.prod(int(n) for n in shape["dims"].split(",") if n) for shape in shapes)
    widths = [max(1, int(shape["bits"] or 8) // 8) for shape in shapes]
    num_bytes = sum(size * width for size, width in zip(sizes, widths, strict=True))
    return Collective(match["kind"], _group_size(match["rest"]), sizes, num_bytes, in_loop)


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
