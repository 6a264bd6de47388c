"""What a client may say in its headers."""

import pytest

from gptj_serve.errors import BadRequest
from gptj_serve.serving.http import headers


@pytest.mark.parametrize(("given", "seconds"), [(None, 58.0), ("2.5", 2.5), ("58", 58.0), ("900", 58.0)])
def test_a_client_can_only_shorten_its_time(given: str | None, seconds: float) -> None:
    sent = {} if given is None else {headers.TIMEOUT: given}
    assert headers.timeout_s(sent, 58.0) == seconds


@pytest.mark.parametrize("given", ["", "soon", "0", "-1", "nan", "inf", "1e6"])
def test_a_time_that_is_none(given: str) -> None:
    with pytest.raises(BadRequest, match=r"x-request-timeout=.*must be seconds, above 0 and at most 58"):
        headers.timeout_s({headers.TIMEOUT: given}, 58.0)
