"""What a compiler plans for a program, read from the optimised HLO: cycles on a TPU, bytes moved on a GPU.

XLA for TPU writes `estimated_cycles` beside most of what it schedules. XLA for GPU writes no costs, but it schedules
kernels that read their operands from memory and write their results there. This module adds up both:

- A loop counts as many times as it runs. If the program does not say, it counts once and is reported in `open_loops`.
- A conditional counts its most expensive branch.
- Operations without an estimate from the TPU compiler (sorts, scatters, gathers, hand-written kernels), or with one of
  2**63 - 1 cycles, which means "unknown", are not in the sum; `missing` names them. Copies that run beside other work
  count as free.
- A gather on a GPU counts its whole operand, though it may read little of it; `gathered` says how many bytes that is.
  Slices count what they take; slice updates and scatters, which XLA does in place, count what they write. An operand
  counts once per kernel, even if the tiles of a matrix product read it more often or a cache holds it.

Plans are not measurements: compare them within one compiler, and trust a device over them.
"""

import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from tools.hlo import Computation, Instruction, Module, num_bytes, parse, sizes

_UNKNOWN = 2**63 - 1
# Scheduled, but nothing is done for them, or their other half is counted.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
_FREE |= {"opt-barrier", "add-dependency", "call-update"}
_FREE_CALLS = ('custom_call_target="AllocateBuffer"', 'custom_call_target="ConcatBitcast"')
_BESIDE_OTHER_WORK = {"copy-start", "slice-start"}
_RUNS_ONE = {"call", "call-start", "async-start", "conditional"}
# Give the same entries another name, dtype or layout.
_RENAMES = {"bitcast", "convert", "copy", "reshape", "transpose"}
_SLICES = {"slice", "dynamic-slice"}
_IN_PLACE = {"dynamic-update-slice", "scatter"}
_ENDS = _SLICES | _IN_PLACE | {"gather"}
# Operations on fewer elements are not reported, unless they sort or look up, which is never cheap on a TPU.
_FEW = 65536
_NEVER_CHEAP = ("sort", "scatter", "gather")


class Part(NamedTuple):
    """A GPU kernel, or what a TPU schedules as one.

    Attributes:
        name: in the HLO.
        what: its operation; for a fusion around a gather, sort or scatter, that.
        times: how often it runs.
        amount: cycles or bytes over all runs; None: no estimate.
        gathered: how many of the bytes are whole operands of gathers.
    """

    name: str
    what: str
    times: int
    amount: int | None
    gathered: int = 0


class Plan(NamedTuple):
    """The plan for a program.

    Attributes:
        amount: cycles or bytes.
        gathered: how many of the bytes are whole operands of gathers.
        missing: what has no estimate → how often it runs.
        open_loops: how many loops have a trip count that depends on the data.
        parts: everything that was added up, the most expensive first.
    """

    amount: int
    gathered: int
    missing: dict[str, int]
    open_loops: int
    parts: list[Part]


def tpu_cycles(text: str) -> Plan:
    """The planned cycles of a program compiled for a TPU."""
    return _plan(parse(text), _cycles)


def gpu_bytes(text: str) -> Plan:
    """The planned bytes of a program compiled for a GPU."""
    return _plan(parse(text), _bytes)


_Cost = Callable[[Module, Computation, Instruction], Part]


def _plan(module: Module, cost: _Cost) -> Plan:
    parts, open_loops = _parts(module, module.entry, cost)
    missing = Counter()
    for part in parts:
        missing[part.what] += part.times if part.amount is None else 0
    parts.sort(key=lambda part: part.amount or 0, reverse=True)
    return Plan(_total(parts), sum(part.gathered for part in parts), dict(+missing), open_loops, parts)


def _total(parts: list[Part]) -> int:
    return sum(part.amount or 0 for part in parts)


def _parts(module: Module, name: str, cost: _Cost) -> tuple[list[Part], int]:
    """The parts that run when a computation does, and how many of its loops are open."""
    parts, open_loops = [], 0
    computation = module.computations[name]
    for instruction in computation.values():
        turns = 1
        if instruction.op == "while":
            known = _turns(module, computation, instruction)
            turns = 1 if known is None else known
            inner, inner_open = _parts(module, instruction.attribute("body"), cost)
            open_loops += inner_open + (known is None)
        elif instruction.op in _RUNS_ONE:
            inner, inner_open = _dearest([_parts(module, branch, cost) for branch in instruction.called()])
            open_loops += inner_open
        else:
            inner = [] if _is_free(instruction) else [cost(module, computation, instruction)]
        parts += [_repeated(part, turns) for part in inner]
    return parts, open_loops


def _dearest(branches: list[tuple[list[Part], int]]) -> tuple[list[Part], int]:
    """The most expensive branch, plus whatever has no estimate in the others, which could cost more."""
    best = max(branches, key=lambda branch: _total(branch[0]))
    unknown = [part for branch in branches if branch is not best for part in branch[0] if part.amount is None]
    return best[0] + unknown, max(open_loops for _, open_loops in branches)


def _repeated(part: Part, turns: int) -> Part:
    amount = None if part.amount is None else part.amount * turns
    return part._replace(times=part.times * turns, amount=amount, gathered=part.gathered * turns)


def _is_free(instruction: Instruction) -> bool:
    is_call = instruction.op == "custom-call" and any(name in instruction.attributes for name in _FREE_CALLS)
    return is_call or instruction.op in _FREE or instruction.op.endswith("-done")


def _turns(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """The trip count of a loop that counts up in equal steps between constants; None for any other loop."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition, body = (module.computations[loop.attribute(name)] for name in ("condition", "body"))
    compared = _root(condition)
    if compared.op != "compare" or compared.attribute("direction") != "LT":
        return None
    counter, limit = (_source(condition, name) for name in compared.operands)
    start = _carried(computation, loop, counter)
    end = _number(limit) if limit.op == "constant" else _carried(computation, loop, limit)
    step = _step(body, counter)
    return None if start is None or end is None or not step else max(0, -(-(end - start) // step))


def _root(computation: Computation) -> Instruction:
    return next(instruction for instruction in computation.values() if instruction.is_root)


def _source(computation: Computation, name: str) -> Instruction:
    """The instruction that made a value, looking through copies and changes of dtype."""
    instruction = computation[name]
    while instruction.op in _RENAMES:
        instruction = computation[instruction.operands[0]]
    return instruction


def _number(instruction: Instruction) -> int | None:
    is_number = instruction.op == "constant" and re.fullmatch(r"-?\d+", instruction.inside)
    return int(instruction.inside) if is_number else None


def _carried(computation: Computation, loop: Instruction, element: Instruction) -> int | None:
    """The initial number of an element that the loop carries."""
    start = computation[loop.operands[0]]
    index = element.attribute("index")
    return None if start.op != "tuple" or index is None else _number(_source(computation, start.operands[int(index)]))


def _step(body: Computation, counter: Instruction) -> int | None:
    """The number that each turn adds to an element that the loop carries."""
    root, index = _root(body), counter.attribute("index")
    added = _source(body, root.operands[int(index)]) if root.op == "tuple" and index is not None else root
    if added.op != "add":
        return None
    first, second = (_source(body, name) for name in added.operands)
    element, step = (first, second) if second.op == "constant" else (second, first)
    return _number(step) if element.attribute("index") == index else None


def _cycles(module: Module, computation: Computation, instruction: Instruction) -> Part:
    estimate = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    if estimate and int(estimate[1]) != _UNKNOWN:
        return Part(instruction.name, instruction.op, 1, int(estimate[1]))
    what = _what(module, instruction)
    is_cheap = what not in _NEVER_CHEAP and _handled(computation, instruction) < _FEW
    return Part(instruction.name, what, 1, 0 if is_cheap or instruction.op in _BESIDE_OTHER_WORK else None)


def _handled(computation: Computation, instruction: Instruction) -> int:
    """The largest number of elements that an instruction reads or writes."""
    operands = [computation[name].type for name in instruction.operands]
    types = operands[1:] if instruction.op == "dynamic-update-slice" else [instruction.type, *operands]
    return max((size for type_ in types for size in sizes(type_)), default=0)


def _what(module: Module, instruction: Instruction) -> str:
    if instruction.op == "custom-call":
        return re.search(r'custom_call_target="([^"]*)"', instruction.attributes)[1]
    inside = _operations(module, instruction)
    return next((op for op in _NEVER_CHEAP if op in inside), instruction.op)


def _operations(module: Module, instruction: Instruction) -> set[str]:
    """Its operation, and those of everything fused into it."""
    if not instruction.op.startswith("fusion"):
        return {instruction.op}
    fused = [inner for name in instruction.called() for inner in module.computations[name].values()]
    return {op for inner in fused for op in _operations(module, inner)}


def _bytes(module: Module, computation: Computation, instruction: Instruction) -> Part:
    # Treat an instruction outside a fusion as a fusion of its own.
    if instruction.op.removesuffix("-start") == "fusion":
        (name,) = instruction.called()
        fused = module.computations[name]
        parameters = _parameters(fused)
    else:
        parameters = [computation[name] for name in dict.fromkeys(instruction.operands)]
        fused = {p.name: p for p in parameters} | {instruction.name: instruction._replace(is_root=True)}
    reads = [_read(module, fused, parameter) for parameter in parameters]
    read, gathered = sum(size for size, _ in reads), sum(size for size, is_gathered in reads if is_gathered)
    return Part(instruction.name, _what(module, instruction), 1, read + _written(fused), gathered)


def _read(module: Module, fused: Computation, parameter: Instruction) -> tuple[int, bool]:
    """How many bytes of a parameter a kernel reads, and whether it gathers them."""
    whole = num_bytes(parameter.type)
    uses = _uses(module, fused, parameter)
    kinds = {user.op if position == 0 else "operand" for user, position in uses}
    if kinds <= _SLICES | _IN_PLACE:
        taken = sum(size for user, _ in uses if user.op in _SLICES for size in sizes(user.type))
        return min(whole, taken * whole // max(1, *sizes(parameter.type))), False
    return whole, kinds == {"gather"}


def _uses(module: Module, fused: Computation, value: Instruction) -> list[tuple[Instruction, int]]:
    """The uses of a value, or of what is made from it entry by entry, with the operand positions."""
    uses, seen, values = [], {value.name}, [value]
    for current in values:
        for user in fused.values():
            for position in (position for position, name in enumerate(user.operands) if name == current.name):
                if user.op == "fusion":
                    inner = module.computations[user.called()[0]]
                    uses += _uses(module, inner, _parameters(inner)[position])
                elif user.is_root or user.op in _ENDS or sizes(user.type) != sizes(current.type):
                    uses.append((user, position))
                elif user.name not in seen:
                    seen.add(user.name)
                    values.append(user)
    return uses


def _parameters(fused: Computation) -> list[Instruction]:
    return sorted((i for i in fused.values() if i.op == "parameter"), key=lambda i: int(i.inside))


def _written(fused: Computation) -> int:
    """The bytes of a kernel's results, or of what is written into them in place."""
    root = _root(fused)
    results = [fused[name] for name in root.operands] if root.op == "tuple" else [root]
    return sum(_put(fused, result) for result in results)


def _put(fused: Computation, result: Instruction) -> int:
    made = _source(fused, result.name) if result.op == "bitcast" else result
    if made.op == "dynamic-update-slice":
        return num_bytes(fused[made.operands[1]].type)
    if made.op == "scatter":  # reads, combines and writes
        return 2 * num_bytes(fused[made.operands[-1]].type)
    return num_bytes(result.type)
