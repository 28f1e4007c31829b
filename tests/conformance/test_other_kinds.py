"""Every method that can be found, of the kinds that pack no weights, holds to the laws of its kind."""

import pytest

from lilliput.core.method import find_path, methods
from lilliput.testing import activation_quantizer, criterion, loss, network, pattern, penalty, schedule

SUITES = {
    "criterion": criterion,
    "pattern": pattern,
    "penalty": penalty,
    "schedule": schedule,
    "loss": loss,
    "activation quantizer": activation_quantizer,
    "network": network,
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
    law(find_path(path))
