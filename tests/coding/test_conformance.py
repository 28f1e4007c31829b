"""Every coding of the folder passes the suite, with the compiled coder and without."""

import pytest

from lilliput.coding.choose import codings
from lilliput.testing.coding import check_coding


@pytest.mark.parametrize("pure", ["0", "1"])
@pytest.mark.parametrize("name", codings())
def test_coding(name: str, pure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LILLIPUT_PURE", pure)
    check_coding(codings()[name])
