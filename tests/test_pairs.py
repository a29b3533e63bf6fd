"""all_pairs: every two values of two parameters meet, in far fewer cases than there are combinations."""

from itertools import combinations, product

from tests.pairs import all_pairs


def test_every_two_values_meet_in_few_cases():
    values = {"a": [1, 2, 3, 4], "b": ["x", "y", "z"], "c": [None, (1, 2)], "d": [False, True]}
    names, cases = all_pairs(**values)
    assert names == list(values)
    assert set(cases) <= set(product(*values.values()))
    for i, j in combinations(range(len(names)), 2):
        assert {(case[i], case[j]) for case in cases} == set(product(values[names[i]], values[names[j]]))
    assert 4 * 3 <= len(cases) <= 16 < 4 * 3 * 2 * 2
