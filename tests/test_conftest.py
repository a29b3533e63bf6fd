"""Which cases pytest and the parts of CI run: no case is lost between them."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from tests import conftest

CASES = [
    "tests/test_softmax.py::test_axis[ids]",
    "tests/test_softmax.py::test_axis[soft]",
    "tests/test_softmax.py::test_axis[sparse]",
    "tests/test_softmax.py::test_one_case",
    "tests/test_softmax.py::test_slow[1]",
    "tests/test_softmax.py::test_slow[2]",
    "tests/test_torch_parity.py::test_parity[mean]",
    "tests/test_torch_parity.py::test_parity[sum]",
]


@dataclass(eq=False)
class Item:
    """As pytest collects it."""

    nodeid: str

    @property
    def path(self):
        return Path(self.nodeid.partition("::")[0])

    def get_closest_marker(self, name):
        return name == "slow" and "test_slow" in self.nodeid


def chosen(*, run_all=False, half=None, but=None, quickly=False):
    left_out = []
    hook = SimpleNamespace(pytest_deselected=lambda *, items: left_out.extend(items))
    config = SimpleNamespace(option=SimpleNamespace(all=run_all, half=half, but=but, quickly=quickly), hook=hook)
    items = [Item(nodeid) for nodeid in CASES]
    everything = list(items)
    conftest.pytest_collection_modifyitems(config, items)
    assert [each for each in everything if each in items or each in left_out] == everything
    assert len(items) + len(left_out) == len(everything)
    if quickly:
        return [each.nodeid for each in items if not getattr(each, "compiled_quickly", False)]
    return [each.nodeid for each in items]


def test_quick_tier_has_one_case_of_each_quick_test():
    assert [nodeid.partition("[")[0] for nodeid in chosen()] == [
        "tests/test_softmax.py::test_axis",
        "tests/test_softmax.py::test_one_case",
        "tests/test_torch_parity.py::test_parity",
    ]


def test_all_is_all():
    assert chosen(run_all=True) == CASES


def test_first_case_of_each_test_is_compiled_as_users_do():
    firsts = chosen(run_all=True, quickly=True)
    assert firsts == [nodeid for nodeid in CASES if not nodeid.endswith(("[soft]", "[sparse]", "[2]", "[sum]"))]


@pytest.mark.parametrize(
    ("marker", "quickly", "compiled_quickly", "clears"),
    [("none", True, True, 0), ("none", True, False, 0), ("optimised", True, False, 1), ("optimised", False, False, 0)],
)
def test_optimised_tests_are_given_nothing_that_was_compiled_quickly(
    monkeypatch, marker, quickly, compiled_quickly, clears
):
    done = []
    monkeypatch.setattr(jax, "clear_caches", lambda: done.append("cleared"))
    monkeypatch.setattr(jax.config, "update", lambda name, value: done.append((name, value)))
    item = SimpleNamespace(
        config=SimpleNamespace(option=SimpleNamespace(quickly=quickly)),
        compiled_quickly=compiled_quickly,
        get_closest_marker=lambda name: name == marker,
    )
    conftest.pytest_runtest_setup(item)
    assert done == [("jax_disable_most_optimizations", compiled_quickly), *["cleared"] * clears]


def test_halves_share_the_cases_out_and_every_test_is_in_both():
    halves = [chosen(run_all=True, half=half) for half in (0, 1)]
    assert sorted({*halves[0], *halves[1]}) == sorted(CASES)
    shared = [nodeid for nodeid in CASES if nodeid in halves[0] and nodeid in halves[1]]
    # A test with one case, and one case of what needs an extra that only the first environment has.
    assert [nodeid.partition("[")[0] for nodeid in shared] == [
        "tests/test_softmax.py::test_one_case",
        "tests/test_torch_parity.py::test_parity",
    ]
    assert {nodeid for nodeid in CASES if "parity" in nodeid} <= {*halves[0]}
    for half in halves:
        assert {nodeid.partition("[")[0] for nodeid in half} == {nodeid.partition("[")[0] for nodeid in CASES}


@pytest.mark.parametrize("outcome", ["failure", "error", "skipped"])
def test_only_what_passed_is_left_out(tmp_path, outcome):
    report = tmp_path / "report.xml"
    report.write_text(
        "<testsuites><testsuite>"
        '<testcase classname="tests.test_softmax" name="test_axis[soft]" time="1" />'
        f'<testcase classname="tests.test_softmax" name="test_one_case"><{outcome} message="no" /></testcase>'
        '<testcase classname="tests.test_probs" name="test_axis[ids]" />'
        "</testsuite></testsuites>",
        encoding="utf-8",
    )
    want = [nodeid for nodeid in CASES if nodeid != "tests/test_softmax.py::test_axis[soft]"]
    assert chosen(run_all=True, but=str(report)) == want
    # That case was compiled as users do, so that no other one of its test has to be.
    assert not [nodeid for nodeid in chosen(run_all=True, but=str(report), quickly=True) if "test_axis" in nodeid]
