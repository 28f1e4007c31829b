"""Every weight method that can be found holds to the laws of its kind."""

import pytest

from lilliput.core.method import find_path, methods
from lilliput.testing import weight_method

PATHS = [m.path for m in methods() if m.kind in {"weight method", "criterion"}]


def test_the_first_methods_are_found():
    assert {"prune/magnitude", "quantize/uniform", "quantize/float16", "share/kmeans", "factorize/svd"} <= set(PATHS)


@pytest.mark.parametrize("law", weight_method.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("path", PATHS)
def test_law(path, law):
    law(find_path(path))
