"""The server that is called, and the key, if a program names none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Optional, Tuple

NO_SERVER = "no server is named: pass its URL, set ISOL8_HOST, or use `isol8 login`"
NO_KEY = "API key required: pass key, set ISOL8_API_KEY, or use `isol8 login`"


def resolve(url: Optional[str], key: Optional[str]) -> Tuple[str, str]:
    """The URL and the key: what is given, else ``ISOL8_HOST`` and ``ISOL8_API_KEY``, else those of `isol8 login`.

    Empty texts count as missing. The key of a login is used for the server of that login only.
    """
    url = url or os.environ.get("ISOL8_HOST")
    key = key or os.environ.get("ISOL8_API_KEY")
    if url and key:
        return url, key
    host, login_key = _login() or ("", "")
    url = url or host
    if not url:
        raise ValueError(NO_SERVER)
    key = key or (login_key if url.rstrip("/") == host.rstrip("/") else "")
    if not key:
        raise ValueError(NO_KEY)
    return url, key


def _login() -> Optional[Tuple[str, str]]:
    """The host and the key that `isol8 login` keeps, if any."""
    home = os.environ.get("HOME")
    if not home:
        return None
    path = Path(home) / ".isol8" / "login.json"
    try:
        login = json.loads(path.read_text(encoding="utf-8"))
        return str(login["host"]), str(login["key"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        # The text of the file, which holds a key, stays out of the error.
        raise ValueError(f"{path} is not a login: use `isol8 logout`, then `isol8 login`") from None
