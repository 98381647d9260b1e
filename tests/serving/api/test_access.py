"""Keys from the environment."""

import pytest

from memreason_hf.serving.api.access import read_keys
from memreason_hf.serving.api.refusals import ApiError, wrong_request


def test_no_variable_means_no_key():
    assert read_keys({}) == ()


def test_keys_are_separated_by_commas():
    assert read_keys({"MEMREASON_API_KEY": " first-key ,second-key,"}) == ("first-key", "second-key")


@pytest.mark.parametrize("value", ["", "  ", ",,", "short", "two words", "schlüssel-lang", "tab\tinside-it"])
def test_what_is_no_key_is_refused_without_being_shown(value, monkeypatch):
    monkeypatch.setenv("MEMREASON_API_KEY", value)
    with pytest.raises(ValueError, match="MEMREASON_API_KEY") as refused:
        read_keys()
    assert not value.strip(" ,") or value not in str(refused.value)


def test_the_header_that_says_when_to_come_back():
    assert ApiError(429, "later", retry_after=0.2).headers() == {"Retry-After": "1"}
    assert ApiError(401, "no").headers() == {"WWW-Authenticate": "Bearer"}


def test_the_field_of_an_error_is_the_one_that_its_message_begins_with():
    fields = {"kl_threshold": None, "n": None}
    assert wrong_request(ValueError("kl_threshold=-1 must be positive."), fields).param == "kl_threshold"
    assert wrong_request(ValueError("nothing=5"), fields).param is None
    # Messages of others cannot steer a terminal.
    assert "\x1b" not in wrong_request(ValueError("\x1b[2J"), fields).message
