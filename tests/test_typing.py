"""The types that a checker is told are those of the values, and the overloads say what the implementation does."""

import inspect
import typing

import pytest

import jxent
from tests import typing_examples

EXAMPLES = [
    function
    for function in vars(typing_examples).values()
    if inspect.isgeneratorfunction(function) and function.__module__ == typing_examples.__name__
]
OVERLOADED = [value for value in vars(jxent).values() if inspect.isfunction(value) and typing.get_overloads(value)]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.__name__)
def test_examples_have_the_types_that_they_state(example):
    pairs = list(example())
    assert pairs
    for value, expected in pairs:
        assert isinstance(value, expected)


def test_mistakes_that_a_checker_refuses_raise():
    for mistake in typing_examples.mistakes():
        with pytest.raises((TypeError, ValueError, AttributeError)):
            mistake()


def test_every_function_whose_arguments_decide_its_result_is_overloaded():
    decide = {"reduction", "return_aux", "return_entropy"}
    functions = filter(inspect.isfunction, vars(jxent).values())
    deciding = [f for f in functions if decide & inspect.signature(f).parameters.keys()]
    assert deciding == OVERLOADED, "needs overloads, one for each type of result"


@pytest.mark.parametrize("function", OVERLOADED, ids=lambda function: function.__name__)
def test_overloads_take_what_the_implementation_takes(function):
    """Names, types and defaults; of what chooses an overload the type is narrower there, and the default may go."""
    parameters = inspect.signature(function).parameters
    hints = typing.get_type_hints(function)
    chosen = {"reduction", "return_aux", "return_entropy", "return"}
    for overload in typing.get_overloads(function):
        its_hints = typing.get_type_hints(overload)
        (options,) = typing.get_args(its_hints.pop("options"))
        its_hints |= typing.get_type_hints(options)
        assert its_hints.keys() == hints.keys()
        assert {name: hint for name, hint in its_hints.items() if hint != hints[name]}.keys() <= chosen
        for name, parameter in inspect.signature(overload).parameters.items():
            if name != "options":
                assert parameter.kind == parameters[name].kind
                assert parameter.default in (parameter.empty, parameters[name].default)
