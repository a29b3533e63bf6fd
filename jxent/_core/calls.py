"""What wraps every public function: better errors for wrong calls, and one context for tracing."""

import functools
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, TypeVar, cast

from jax.sharding import get_abstract_mesh, use_abstract_mesh

_Function = TypeVar("_Function", bound=Callable[..., Any])
# Arguments that other libraries call by a different name.
_ELSEWHERE = {
    "alpha": "class_weight",
    "dim": "axis",
    "ignore_index": "where",
    "input": "logits",
    "labels": "ids",
    "mask": "where",
    "target": "labels",
    "targets": "labels",
    "temperature": "logit_scale",
    "tokens": "ids",
}


def naming_arguments(function: _Function) -> _Function:
    """The same function, but its error for a call with too many positional arguments or an unknown keyword names the
    argument that was likely meant.
    """
    parameters = inspect.signature(function).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    by_name = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    takes_more = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    known = frozenset((*positional, *by_name))

    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        if len(args) > len(positional) and not takes_more:
            example = "class_weight" if "class_weight" in known else next(iter(by_name), None)
            hint = f"; pass the others by name, as {example}=..." if example else ""
            raise TypeError(
                f"{function.__name__}: takes {len(positional)} positional arguments ({', '.join(positional)}); got "
                f"{len(args)}{hint}"
            )
        if not known.issuperset(options):
            unknown = next(name for name in options if name not in known)
            not_given = known.difference(positional[: len(args)], options)
            raise TypeError(f"{function.__name__}: has no argument {unknown!r}{_hint(unknown, not_given)}")
        # jax 0.10 traces derivative rules in the context of an empty mesh, and other code in that of none. Its caches
        # tell them apart, so all of the forward pass would be traced twice (a fifth of the time of tracing and lowering).
        with use_abstract_mesh(get_abstract_mesh()):
            return function(*args, **options)

    return cast(_Function, called)


def _hint(unknown: str, not_given: frozenset[str]) -> str:
    """`not_given`: the arguments that were not given."""
    meant = get_close_matches(unknown, sorted(not_given))
    if _ELSEWHERE.get(unknown) in not_given:
        meant = [_ELSEWHERE[unknown]]
    return f"; did you mean {' or '.join(meant)}?" if meant else ""
