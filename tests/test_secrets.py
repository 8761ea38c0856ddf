from cpt_launcher.secrets import redact, values

ENVIRON = {"HF_TOKEN": "hf_abcdef", "CUSTOM": "custom-value", "AWS_SECRET_ACCESS_KEY": "aws/abc+def", "FLAG_TOKEN": "1"}


def test_named_and_telling_names_are_secret_and_short_values_are_not() -> None:
    harmless = {"HOME": "/home/me", "TOKENIZERS_PARALLELISM": "disabled"}
    assert values(["CUSTOM", "ABSENT"], {**ENVIRON, **harmless}) == {
        "CUSTOM": "custom-value",
        "HF_TOKEN": "hf_abcdef",
        "AWS_SECRET_ACCESS_KEY": "aws/abc+def",
    }


def test_redact() -> None:
    secrets = {"A": "secret-1", "LONGER": "secret-1-and-more", "PEM": "-----BEGIN\nabcdefgh\n-----END"}
    assert redact("x secret-1-and-more secret-1 abcdefgh y", secrets) == "x <LONGER> <A> <PEM> y"
