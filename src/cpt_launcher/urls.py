"""URLs as they may be seen, and what in them is a secret.

Text is cut by hand rather than by `urllib.parse`: what holds a password is often no valid URL (`/`, `#`, `[` or a blank
in it), and just then none of it may be seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

_SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]{0,30}://"
_URL = re.compile(rf"({_SCHEME})(\S*)")
# `user:` before what is no port; with a blank in the password it goes beyond the first word.
_USER = r"[^\s/@:\[]*:(?!\d*(?:[\s/?#'\"),;:.]|$))"
_BLANK = re.compile(rf"({_SCHEME}{_USER}[^\s@]{{0,300}})[^\S\n]([^\n@]{{0,300}}@)")
_WHOLE = re.compile(rf"\s*{_SCHEME}{_USER}.*@")
_ENDS = "'\")]}>,.:;"
_SIGNED = re.compile(r"(signature|token|secret|passwo?r?d|api_?key|^sig|^auth|^jwt)$", re.IGNORECASE)
_JOINT = "\x00"  # stands for a blank inside a URL


def shown(text: str) -> str:
    """Text with the URLs in it as they may be seen: without user, password, query and fragment, where signatures
    stand. In doubt more is left out.
    """
    return _URL.sub(_cut, _joined(text))


def secrets(text: str) -> Iterator[tuple[str, str]]:
    """The secrets in a text's URLs, as they stand there: (`password`, its value), (`X-Amz-Signature`, its value)."""
    for match in _URL.finditer(_joined(text)) if "://" in text else ():
        user, _, rest = _divided(match[2])
        _, colon, password = user.partition(":")
        if colon and password and not re.match(r"\d{1,5}/", password):  # that is a port
            yield "password", password.replace(_JOINT, " ")
        for part in re.split(r"[&;?#]", _at_query(rest)[2]):
            name, _, value = part.partition("=")
            if value.rstrip(_ENDS) and _SIGNED.search(unquote(name)):
                yield unquote(name), value.rstrip(_ENDS)


def _joined(text: str) -> str:
    """A password with blanks in one word with its URL."""
    if (whole := _WHOLE.match(text)) is not None:
        return whole[0].strip().replace(" ", _JOINT) + text[whole.end() :]
    return _BLANK.sub(lambda match: match[0].replace(" ", _JOINT), text)


def _divided(rest: str) -> tuple[str, str, str]:
    """What follows `scheme://` as user with password, `@` and what comes after it; without a user, two times nothing
    and the whole.
    """
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if ":" in authority and "@" in rest:  # a password may hold all of `@/?#`, so it ends at the last @
        return rest.rpartition("@")
    before, at, after = authority.rpartition("@")
    return before, at, after + rest[len(authority) :]


def _at_query(rest: str) -> tuple[str, str, str]:
    found = re.search(r"[?#;]", rest)
    return (rest[: found.start()], found[0], rest[found.end() :]) if found else (rest, "", "")


def _cut(match: re.Match[str]) -> str:
    body = match[2].rstrip(_ENDS)
    return match[1] + _at_query(_divided(body)[2])[0] + match[2][len(body) :]
