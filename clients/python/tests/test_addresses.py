"""Addresses of servers."""

from __future__ import annotations

import warnings

import pytest

from isol8 import Isol8


@pytest.mark.parametrize("address", ["http://isol8.example.com", "http://10.0.0.1:3000"])
def test_a_key_that_is_sent_in_clear_is_warned_of(address: str) -> None:
    with pytest.warns(UserWarning, match="can be read on the way"):
        Isol8(address, "key").close()


@pytest.mark.parametrize(
    "address", ["https://isol8.example.com", "http://127.0.0.1:3000", "http://[::1]:3000", "http://localhost:3000"]
)
def test_nothing_is_said_of_one_that_is_not(address: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Isol8(address, "key").close()
