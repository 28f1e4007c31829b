"""Every weight method in every setting, and every two in a row at their ends, trains what it saves."""

import pytest

from lilliput.core.method import find_path, methods
from lilliput.testing import attached

PATHS = [m.path for m in methods() if m.kind in {"weight method", "criterion"}]

# Two in a row that must claim weights: a pair that refuses everything would pass every law.
MUST_COMPOSE = {
    ("prune/magnitude", "quantize/uniform"),
    ("prune/magnitude", "quantize/float16"),
    ("prune/magnitude", "share/kmeans"),
    ("prune/sparse", "share/kmeans"),
    ("factorize/svd", "quantize/uniform"),
    ("factorize/svd", "prune/magnitude"),
    ("factorize/svd", "share/kmeans"),
    ("share/kmeans", "quantize/float16"),
    ("quantize/uniform", "quantize/float16"),
}


@pytest.mark.parametrize("law", attached.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("path", PATHS)
def test_alone(path, law):
    law(find_path(path))


# A method that needs calibration packs to the form of one that does not (a criterion to that of prune/sparse); all
# pairs are tried with that. Stats for each weight of the spread take long, so it meets these methods only.
ENOUGH = {"quantize/float16", "share/kmeans"}


def paired(first, second):
    calibrated = [other for path, other in ((first, second), (second, first)) if find_path(path).needs]
    return all(other in ENOUGH for other in calibrated)


PAIRS = [(first, second) for first in PATHS for second in PATHS if paired(first, second)]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_steps(first, second):
    claimed = attached.composes(find_path(first), find_path(second))
    assert claimed or (first, second) not in MUST_COMPOSE, "claims no weight at all"
