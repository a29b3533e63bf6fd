"""Parses a compiled program as XLA prints it, and lists what it sends between devices."""

import math
import re
from typing import NamedTuple

_SHAPE = re.compile(r"\b[a-z]+(?P<bits>\d*)(?:e\d+m\d+\w*)?\[(?P<dims>[\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:to_apply|calls|body|condition|true_computation|false_computation|branch_computations)="
    r"(?:\{(?P<several>[^}]*)\}|%?(?P<one>[\w.\-]+))"
)
_COLLECTIVES = {"all-reduce", "all-gather", "all-to-all", "collective-permute", "collective-broadcast"}
_COLLECTIVES |= {"ragged-all-to-all", "reduce-scatter"}


class Instruction(NamedTuple):
    """One line: `name = type op(operands), attributes`.

    Attributes:
        type: of the result, as written.
        operands: their names.
        inside: the text in the parentheses; for a constant its value, for a parameter its number.
        is_root: whether its computation returns it.
    """

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    inside: str
    attributes: str
    is_root: bool

    def called(self) -> list[str]:
        """The names of the computations that it runs or applies to its operands."""
        groups = [found["several"] or found["one"] for found in _CALLED.finditer(self.attributes)]
        return [name.strip().removeprefix("%") for group in groups for name in group.split(",")]

    def attribute(self, name: str) -> str | None:
        """The value of `name=…`, if that is a name or a number."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None


Computation = dict[str, Instruction]


class Module(NamedTuple):
    """The computations, each a dict of its instructions in order, and the name of the entry computation."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """Parses `compiled.as_text()`. Instructions are indented; heads and ends of computations are not."""
    computations, entry, current = {}, "", {}
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and not line.startswith("HloModule"):
            current = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif found := re.match(r" +(ROOT )?%?([\w.\-]+) = (.*)", line):
            current[found[2]] = _instruction(found[2], found[3], is_root=bool(found[1]))
    return Module(computations, entry)


def _instruction(name: str, text: str, *, is_root: bool) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    type_, rest = text[:end], text[end:].lstrip()
    start = rest.index("(")
    stop = _closing(rest, start)
    inside = rest[start + 1 : stop - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name, type_, rest[:start], operands, inside, rest[stop:], is_root)


def _closing(text: str, start: int) -> int:
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position + 1
    raise ValueError(f"a parenthesis is not closed: {text}")


def sizes(type_: str) -> list[int]:
    """The number of elements in each array of a type."""
    return [_elements(shape) for shape in _SHAPE.finditer(type_)]


def num_bytes(type_: str) -> int:
    """The bytes of all arrays of a type; XLA stores a bool in a byte, and two 4-bit numbers in one."""
    return sum(-(-_elements(shape) * int(shape["bits"] or 8) // 8) for shape in _SHAPE.finditer(type_))


def _elements(shape: re.Match) -> int:
    return math.prod(int(n) for n in shape["dims"].split(",") if n)


class Collective(NamedTuple):
    """One instruction that sends, possibly several arrays at once.

    Attributes:
        kind: "all-reduce", "all-gather", …
        devices: how many devices exchange data with each other; 0 for a collective-permute.
        sizes: the number of elements of each array, as one device holds it afterwards.
        num_bytes: of all of them.
        in_loop: whether it runs in the body of a loop, directly or in a computation called there.
    """

    kind: str
    devices: int
    sizes: tuple[int, ...]
    num_bytes: int
    in_loop: bool


def collectives(compiled) -> list[Collective]:
    """All collectives between several devices, in program order; one in the body of a loop is listed once."""
    module = parse(compiled.as_text())
    loops = _in_loops(module)
    found = [
        _collective(instruction, in_loop=name in loops)
        for name, computation in module.computations.items()
        for instruction in computation.values()
        if instruction.op.removesuffix("-start") in _COLLECTIVES
    ]
    return [collective for collective in found if collective.devices != 1]


def _in_loops(module: Module) -> set[str]:
    """The names of the computations that run on each turn of some loop."""
    instructions = [i for computation in module.computations.values() for i in computation.values()]
    reached, found = set(), {name for i in instructions if i.op == "while" for name in i.called()}
    while found:
        reached |= found
        found = {
            name for caller in found for i in module.computations[caller].values() for name in i.called()
        } - reached
    return reached


def _collective(instruction: Instruction, *, in_loop: bool) -> Collective:
    # The start of an asynchronous collective may list its operands first: ((f32[8]), f32[32]).
    type_ = instruction.type
    results = type_.partition("), ")[2] if type_.startswith("((") else type_
    kind = instruction.op.removesuffix("-start")
    return Collective(kind, _group_size(instruction.attributes), tuple(sizes(results)), num_bytes(results), in_loop)


def _group_size(attributes: str) -> int:
    """The size in `replica_groups={{0,1},{2,3}}`, `=[2,2]<=[4]` (groups, size) or `=mesh['a'=2,'b'=2] {'b'}`."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return listed[1].count(",") + 1
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(counted[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        lengths = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        return math.prod(lengths[name] for name in re.findall(r"'(\w+)'", named[2]))
    assert "source_target_pairs" in attributes, attributes
    return 0
