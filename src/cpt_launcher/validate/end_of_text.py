"""The token that a model folder's tokenizer ends documents in, against the one that its config ends a text at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cpt_launcher import jsontext, shipped
from cpt_launcher.validate.arguments import Arguments
from cpt_launcher.validate.report import Finding


def check(args: Arguments, folder: Path) -> Iterator[Finding]:
    """A tokenizer whose end of text is none of the config's: what is trained never ends where the model is to stop. A
    template that writes an end of its own is another rule's part (`check_arguments.end_of_text`).
    """
    template = args.get("template")
    if template == "llama3" or args.schema.templates.get(str(template)) or not shipped.is_dir(folder):
        return
    token, number = tokenizers(folder)
    stops = configs(folder)
    if number is None or not stops or any(number in _numbers(given) for given in stops.values()):
        return
    said = ", ".join(f"{name} has {value}" for name, value in stops.items())
    what = f"documents would end in the tokenizer's {token} (id {number}), and eos_token_id of {said}"
    hint = f"which is right? Mend eos_token in {folder / 'tokenizer_config.json'}, or eos_token_id in the other"
    yield args.warning("template-eos", "model_name_or_path", what, hint)


def tokenizers(folder: Path) -> tuple[str, int | None]:
    """The tokenizer's end-of-text token and its id; None where its files do not say."""
    config = jsontext.mapping(folder / "tokenizer_config.json")
    given = config.get("eos_token") or jsontext.mapping(folder / "special_tokens_map.json").get("eos_token")
    token = given.get("content") if isinstance(given, dict) else given
    if not isinstance(token, str):
        return "", None
    added = config.get("added_tokens_decoder")
    for number, item in added.items() if isinstance(added, dict) else ():
        if isinstance(item, dict) and item.get("content") == token and str(number).isdecimal():
            return token, int(number)
    whole = jsontext.mapping(folder / "tokenizer.json")
    listed, model = whole.get("added_tokens"), whole.get("model")
    for item in listed if isinstance(listed, list) else ():
        if isinstance(item, dict) and item.get("content") == token and isinstance(item.get("id"), int):
            return token, item["id"]
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    number = vocabulary.get(token) if isinstance(vocabulary, dict) else None
    return token, number if isinstance(number, int) else None


def configs(folder: Path) -> dict[str, object]:
    """`eos_token_id` by the name of the file that has it: a number, or a list of them."""
    found = {}
    for name in ("config.json", "generation_config.json"):
        values = jsontext.mapping(folder / name)
        text = values.get("text_config")
        given = values.get("eos_token_id", text.get("eos_token_id") if isinstance(text, dict) else None)
        if _numbers(given):
            found[name] = given
    return found


def _numbers(given: object) -> list[int]:
    return [each for each in (given if isinstance(given, list) else [given]) if isinstance(each, int)]
