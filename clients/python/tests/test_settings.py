"""The server that is called, and the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional

import pytest

from isol8 import AsyncIsol8, Isol8
from isol8._settings import NO_KEY, NO_SERVER, resolve

LOGIN = {"host": "http://127.0.0.1:1/", "key": "of the login"}
HERE = "http://127.0.0.1:1"
ELSEWHERE = "http://127.0.0.1:2"


def prepare(at: pytest.MonkeyPatch, home: Path, host: Optional[str], key: Optional[str], login: Any) -> None:
    at.setenv("HOME", str(home))
    for name, value in (("ISOL8_HOST", host), ("ISOL8_API_KEY", key)):
        at.delenv(name, raising=False) if value is None else at.setenv(name, value)
    if login is not None:
        (home / ".isol8").mkdir()
        (home / ".isol8" / "login.json").write_text(login if isinstance(login, str) else json.dumps(login))


# The arguments, the environment, whether there is a login, and what is called.
@pytest.mark.parametrize(
    "url, key, host, env_key, login, expected",
    [
        (HERE, "k", None, None, None, (HERE, "k")),
        (HERE, "k", ELSEWHERE, "e", LOGIN, (HERE, "k")),
        (None, None, ELSEWHERE, "e", LOGIN, (ELSEWHERE, "e")),
        (None, None, None, None, LOGIN, (LOGIN["host"], LOGIN["key"])),
        (None, None, "", "", LOGIN, (LOGIN["host"], LOGIN["key"])),
        (None, None, None, "e", LOGIN, (LOGIN["host"], "e")),
        (HERE, None, None, None, LOGIN, (HERE, LOGIN["key"])),
        # A login's key goes nowhere else.
        (ELSEWHERE, None, None, None, LOGIN, NO_KEY),
        (None, None, ELSEWHERE, None, LOGIN, NO_KEY),
        (None, None, None, None, None, NO_SERVER),
        (None, "k", None, "e", None, NO_SERVER),
        (HERE, None, None, None, None, NO_KEY),
        (None, None, None, None, "{hunter2", "is not a login"),
        (None, None, None, None, '["hunter2"]', "is not a login"),
    ],
)
def test_a_server_and_a_key_are_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: Any, key: Any, host: Any, env_key: Any, login: Any, expected: Any
) -> None:
    prepare(monkeypatch, tmp_path, host, env_key, login)
    if isinstance(expected, tuple):
        assert resolve(url, key) == expected
        return
    for client in (Isol8, AsyncIsol8):
        with pytest.raises(ValueError) as refused:
            client(url, key)
        assert expected in str(refused.value) and "hunter2" not in str(refused.value)
