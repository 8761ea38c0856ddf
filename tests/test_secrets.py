from __future__ import annotations

import base64
import json
import re
import urllib.parse

import pytest

from cpt_launcher.secrets import redact, telling, values

ENVIRON = {"HF_TOKEN": "hf_abcdef", "CUSTOM": "custom-value", "AWS_SECRET_ACCESS_KEY": "aws/abc+def", "FLAG_TOKEN": "1"}
LONG = "0123456789abcdef"
HARMLESS = [
    "PATH", "PWD", "OLDPWD", "COMPASS", "KEYBOARD", "TOKENIZERS_PARALLELISM", "MAX_TOKENS", "tokenizer",
    "max_new_tokens", "tokenized_path", "MONKEY", "PATTERN", "PASSAGE", "SASH", "pad_token",
    "AWS_WEB_IDENTITY_TOKEN_FILE", "GOOGLE_APPLICATION_CREDENTIALS", "SSH_KEY_PATH",
]  # fmt: skip
TELLING = [
    "SSH_PASSPHRASE", "REDIS_PASS", "DB_PWD", "GH_PAT", "WANDB_KEY", "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_CONNECTION_STRING", "AZURE_SAS", "SAS_URL", "MY_JWT", "SESSION_COOKIE", "SLACK_WEBHOOK",
    "PGPASSWORD", "GITHUB_TOKEN", "GHTOKEN", "CLIENT_SECRET", "APIKEY", "hub_token", "swanlab_lark_webhook_url",
    "AWS_ACCESS_KEY_ID", "aws_credentials", "x-api-key",
]  # fmt: skip


def test_named_and_telling_names_are_secret_and_short_values_are_not() -> None:
    harmless = {"HOME": "/home/me", "TOKENIZERS_PARALLELISM": "disabled"}
    assert values(["CUSTOM", "ABSENT"], {**ENVIRON, **harmless}) == {
        "CUSTOM": "custom-value",
        "HF_TOKEN": "hf_abcdef",
        "AWS_SECRET_ACCESS_KEY": "aws/abc+def",
    }


@pytest.mark.parametrize("name", TELLING)
def test_names_that_tell(name: str) -> None:
    assert telling(name, LONG)


@pytest.mark.parametrize("name", HARMLESS)
def test_names_that_only_look_like_it(name: str) -> None:
    assert not telling(name, LONG)


def test_a_key_to_sort_by_is_none_to_a_door() -> None:
    assert not telling("SORT_KEY", "created_at")


def test_passwords_in_urls() -> None:
    environ = {
        "MLFLOW_TRACKING_URI": "http://user:uripw%401234@127.0.0.1:18861",
        "http_proxy": "http://user:proxypw@proxy:3128/",
        "BASE": "https://example.org:8443/a?version=123456",
    }
    assert values((), environ) == {
        "password in MLFLOW_TRACKING_URI": "uripw@1234",
        "password in MLFLOW_TRACKING_URI, quoted": "uripw%401234",
        "password in http_proxy": "proxypw",
    }


def test_redact() -> None:
    secrets = {"A": "secret-1", "LONGER": "secret-1-and-more", "PEM": "-----BEGIN\nabcdefgh\n-----END"}
    assert redact("x secret-1-and-more secret-1 abcdefgh y", secrets) == "x <LONGER> <A> <PEM> y"
    assert redact("nothing to hide", {}) == "nothing to hide"


@pytest.mark.parametrize("secret", ["s3cret/+ pw'\"ä\\", "hf_abcdefghijklmnop", "a=b&c=d?e", "tab\tand \U0001f511"])
def test_the_forms_in_which_a_secret_is_printed(secret: str) -> None:
    basic = [base64.b64encode(f"{user}:{secret}".encode()).decode() for user in ("u", "us", "use", "user")]
    printed = [
        f"json {json.dumps({'token': secret})} {json.dumps(secret, ensure_ascii=False)}",
        f"repr {secret!r} {[secret]}",
        f"url {urllib.parse.quote(secret)} {urllib.parse.quote(secret, safe='')} {urllib.parse.quote_plus(secret)}",
        f"query {urllib.parse.urlencode({'token': secret})}",
        f"lower {re.sub('%..', lambda match: match[0].lower(), urllib.parse.quote(secret))}",
        f"base64 {base64.b64encode(secret.encode()).decode()} {base64.urlsafe_b64encode(secret.encode()).decode()}",
        f"hex {secret.encode().hex()} {secret.encode().hex().upper()}",
        *(f"Authorization: Basic {text}" for text in basic),
    ]
    for line in printed:
        clean = redact(line, {"S": secret})
        assert "<S>" in clean
        assert not any(part in clean for part in _traces(secret)), clean


def _traces(secret: str) -> list[str]:
    """What would give it away: its middle, as it is and encoded."""
    middle = secret[2:-2]
    encoded = [base64.b64encode(b"\0" * skip + secret.encode()).decode()[6:-6] for skip in range(3)]
    forms = (middle, urllib.parse.quote(middle), json.dumps(middle)[1:-1], middle.encode().hex(), *encoded)
    return [form for form in forms if len(form) > 3]
