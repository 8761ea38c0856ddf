"""Which values are secret, and keeping them out of everything that is written.

Found in a text are: the value as it is, each longer line of it, and the value as JSON, as Python's `repr`, quoted for
a URL, in base64 (alone or inside something longer, such as a Basic Authorization header) and in hex. Not found are:
values under `MIN_LENGTH` characters, and values that are changed in case, hashed, compressed, encoded twice, or broken
up by line breaks or terminal colours.
"""

from __future__ import annotations

import base64
import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote, quote_plus, unquote

from cpt_launcher import urls

MIN_LENGTH = 6
MIN_KEY_LENGTH = 16  # under these a `..._KEY` is more likely a key to sort by
_NAME = re.compile(
    r"SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|(API|ACCESS|PRIVATE)[_-]?KEY|CONNECTION[_-]?STRING|WEBHOOK"
    r"|TOKEN(?![A-Z])|(?<![A-Z0-9])(COOKIES?|SAS|JWT)(?![A-Z0-9])|[_-](PASS|PWD|PAT)(?![A-Z0-9])",
    re.IGNORECASE,
)
_KEY = re.compile(r"[_-]KEY$", re.IGNORECASE)
# Tokens of a vocabulary, and where a secret lies rather than what it is.
_HARMLESS = re.compile(
    r"(^|_)(PAD|EOS|BOS|UNK|SEP|CLS|MASK|IMAGE|VIDEO|AUDIO|SPECIAL|STOP|END)_TOKEN|_(FILE|PATH|DIR)$"
    r"|^GOOGLE_APPLICATION_CREDENTIALS$",
    re.IGNORECASE,
)


def telling(name: str, value: str) -> bool:
    """Whether what is called so holds a secret, by its name; a value counts where the name alone says too little."""
    if _HARMLESS.search(name):
        return False
    return bool(_NAME.search(name)) or (len(value) >= MIN_KEY_LENGTH and bool(_KEY.search(name)))


def named(names: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The values of those named, as they are."""
    return {name: environ[name] for name in names if environ.get(name)}


def values(names: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Secret values to look for, by name: those named, every variable that is called like one, and what is secret in
    the URLs among the others (`http_proxy`, `DATABASE_URL`, ...).

    Values shorter than `MIN_LENGTH` characters are left out: masking `1` or `true` would only spoil the log.
    """
    wanted = [*names, *(name for name, value in environ.items() if telling(name, value))]
    found = {name: environ.get(name, "") for name in wanted}
    for name, value in environ.items():
        for what, secret in urls.secrets(value):
            found |= {f"{what} in {name}": unquote(secret)}
            if unquote(secret) != secret:
                found |= {f"{what} in {name}, quoted": secret}
    return {name: value for name, value in found.items() if len(value.strip()) >= MIN_LENGTH}


def redact(text: str, secrets: Mapping[str, str]) -> str:
    """`text` with each secret value, in each form that is looked for, replaced by `<NAME>`."""
    pattern, names = _finder(tuple(secrets.items()))
    return pattern.sub(lambda match: f"<{names[match[0]]}>", text) if names else text


@functools.lru_cache(maxsize=8)
def _finder(secrets: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[str], Mapping[str, str]]:
    """One pattern for all forms of all secrets, the longest first, and the name that each stands for."""
    names: dict[str, str] = {}
    for name, value in secrets:
        for piece in {value.strip(), *(line.strip() for line in value.splitlines())}:
            if len(piece) >= MIN_LENGTH:
                names |= {form: name for form in _forms(piece) if form not in names}
    # By their first characters: at most places in a text no group begins, and that is seen at once.
    groups = itertools.groupby(sorted(names), key=lambda form: form[0])
    branches = ("|".join(re.escape(form) for form in sorted(group, key=len, reverse=True)) for _, group in groups)
    return re.compile("|".join(f"(?:{branch})" for branch in branches)), names


def _forms(piece: str) -> Iterator[str]:
    raw = piece.encode("utf-8", "surrogateescape")
    yield piece
    yield from (json.dumps(piece, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False))
    yield repr(piece)[1:-1]
    for quoted in (quote(raw, safe=""), quote(raw, safe="/"), quote_plus(raw)):
        yield quoted
        yield re.sub("%..", lambda match: match[0].lower(), quoted)
    yield from (raw.hex(), raw.hex().upper())
    for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            # Three bytes are four characters; those that depend on the bytes around are left out.
            whole = encode(b"\0" * before + raw).decode().rstrip("=")
            yield whole[(0, 2, 3)[before] : len(whole) - bool((before + len(raw)) % 3)]
