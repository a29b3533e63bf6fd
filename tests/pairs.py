"""Cases of a test with several parameters: all pairs of values, where all combinations would find nothing more."""

from itertools import combinations, product


def all_pairs(**values):
    """Arguments of `pytest.mark.parametrize`: every two values of two parameters meet in one case or more."""
    cases = list(product(*values.values()))
    places = {case: set(combinations(enumerate(case), 2)) for case in cases}
    left, chosen = set.union(*places.values()), []
    while left:
        chosen.append(max(cases, key=lambda case: len(places[case] & left)))
        left -= places[chosen[-1]]
    return list(values), chosen
