"""Every method that can be found, of the kinds that pack no weights, holds to the laws of its kind."""

from contextlib import nullcontext

import pytest

from lilliput.core.method import find_path, methods
from lilliput.testing import (
    activation_quantizer,
    convolution,
    criterion,
    feature_loss,
    gradient_hook,
    loss,
    network,
    pattern,
    penalty,
    precision,
    range_solver,
    rounding_solver,
    schedule,
)

SUITES = {
    "criterion": criterion,
    "pattern": pattern,
    "penalty": penalty,
    "schedule": schedule,
    "loss": loss,
    "range solver": range_solver,
    "rounding solver": rounding_solver,
    "feature loss": feature_loss,
    "activation quantizer": activation_quantizer,
    "network": network,
    "gradient hook": gradient_hook,
    "precision": precision,
    "convolution": convolution,
}
CASES = [
    pytest.param(m.path, law, id=f"{m.path}-{law.__name__}")
    for m in methods()
    if m.kind in SUITES
    for law in SUITES[m.kind].LAWS
]


def test_every_suite_has_a_method():
    assert {m.kind for m in methods()} >= SUITES.keys()


@pytest.mark.parametrize(("path", "law"), CASES)
def test_law(path, law):
    with gradient_hook.alone() if law in gradient_hook.LAWS else nullcontext():
        law(find_path(path))
