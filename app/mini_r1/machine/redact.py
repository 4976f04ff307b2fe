"""Secrets out of text: what goes to a terminal, a log or a support archive carries no token.

Two nets. Values of environment variables whose names say that they are secret are replaced wherever they stand, also
as JSON, Python or a URL writes them. What looks like a secret by itself is replaced whoever brought it. Text with
secrets of other kinds passes: this is a net, and no proof.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote, quote_plus

REDACTED = "[redacted]"
SHORTEST = 4
"""Characters; a shorter value would take half of any text with it."""

_ANYWHERE = re.compile(r"PASSWORD|PASSWD|PASSPHRASE|SECRET|CREDENTIAL|APIKEY|AUTHORIZATION")
_WORD_END = re.compile(r"(?:TOKEN|KEY|JWT|COOKIE|SIGNATURE)S?$|^(?:AUTH|OAUTH|PASS|PWD|PAT|DSN)$")
"""What a word of a name ends in, or is: API_KEY and GITHUBTOKEN, and neither KEYBOARD nor TOKENIZERS."""
_OF_A_VOCABULARY = re.compile(r"(?:PAD|EOS|BOS|UNK|SEP|CLS|MASK)_TOKEN$|^KEYS?$|^TOKENS$")
"""Names that mean something else in a text about models and recipes."""
_PLACE = re.compile(r"(?:_PATH|_FILE|_DIR|_SOCK)$")
_NO_SECRET = frozenset({"auto", "default", "false", "none", "null", "true"})
_NUMBER = re.compile(r"[0-9][0-9_,.]*$")

# Nothing below may take more than linear time: a log may be long, and what is in it was written by others. So every
# repetition is bounded, or stands for characters that cannot begin a second match inside it (the look-behinds).
_TOKENS = re.compile(
    r"""
    (?<![A-Za-z0-9])hf_[A-Za-z0-9]{16,}
    | (?<![A-Za-z0-9])api_org_[A-Za-z0-9]{16,}
    | (?<![A-Za-z0-9])gh[pousr]_[A-Za-z0-9]{20,}
    | (?<![A-Za-z0-9])github_pat_[A-Za-z0-9_]{20,}
    | (?<![A-Za-z0-9_-])glpat-[A-Za-z0-9_-]{16,}
    | (?<![A-Za-z0-9_-])sk-[A-Za-z0-9_-]{16,}
    | (?<![A-Za-z0-9_-])xox[abprs]-[A-Za-z0-9-]{10,}
    | (?<![A-Za-z0-9_-])AIza[A-Za-z0-9_-]{35}
    | (?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])
    | (?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*
    | (?<=://)[^\s/@"']{1,512}(?=@)
    | (?<![A-Za-z0-9])(?<=[Bb]earer\ )[A-Za-z0-9._~+/=-]{8,}
    """,
    re.VERBOSE,
)
"""Hugging Face, GitHub, GitLab, OpenAI, Slack, Google, AWS, JSON Web Tokens, the user part of a URL, HTTP bearers."""
_PEM_BEGIN = re.compile(r"-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----")
_PEM_END = re.compile(r"-----END [A-Z ]{0,32}PRIVATE KEY-----")
_QUOTE = r"""\\{0,3}["']?"""
_ASSIGNED = re.compile(
    rf"(?<![A-Za-z0-9_])(?P<name>[A-Za-z_][A-Za-z0-9_-]{{1,63}}){_QUOTE}\s{{0,4}}[=:]\s{{0,4}}{_QUOTE}"
)
_OPTION = re.compile(rf"(?<![A-Za-z0-9_-])--(?P<name>[A-Za-z][A-Za-z0-9_-]{{1,63}}){_QUOTE},?\s{{1,32}}{_QUOTE}(?!-)")
_SCHEME = r"(?:Basic|Bearer|Digest|Token)"
_VALUE = re.compile(
    rf"(?:{_SCHEME}\s{{1,4}})?(?!{_SCHEME}\s)(?P<value>[^\s\"'\\,;&<>(){{}}\[\]]{{{SHORTEST},}})", re.IGNORECASE
)
"""What is assigned, without the scheme of an Authorization header before it."""


def redact(text: str, environment: Mapping[str, str]) -> str:
    """The text with every secret that can be known replaced by `[redacted]`.

    Args:
        text: anything; takes time linear in its length.
        environment: variables whose values must not appear, if their names say that they are secret.
    """
    values = sorted({form for value in _secrets(environment) for form in _forms(value)}, key=len, reverse=True)
    if values:
        text = re.sub("|".join(map(re.escape, values)), REDACTED, text)
    text = _without_pem(text)
    text = _TOKENS.sub(REDACTED, text)
    return _without_values_of(_OPTION, _without_values_of(_ASSIGNED, text))


def redact_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment that may be shown: sorted by name, secrets replaced."""
    return {
        name: REDACTED if is_secret(name, value) else redact(value, environment)
        for name, value in sorted(environment.items())
    }


def is_secret(name: str, value: str) -> bool:
    """Whether an environment variable holds a secret, by its name; a switch, a number or a place of a file is none."""
    return _named_secret(name) and len(value) >= SHORTEST and not _harmless(name, value)


def _named_secret(name: str) -> bool:
    plain = name.upper().replace("-", "_").replace(".", "_")
    return bool(_ANYWHERE.search(plain) or any(_WORD_END.search(word) for word in plain.split("_")))


def _harmless(name: str, value: str) -> bool:
    if _PLACE.search(name.upper()) and value.startswith("/"):
        return True
    if value.lower() in _NO_SECRET or name.upper() in ("PWD", "OLDPWD"):
        return True
    return bool(_NUMBER.match(value)) and not _ANYWHERE.search(name.upper())


def _secrets(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        if is_secret(name, value):
            yield value
            yield from (line.strip() for line in value.splitlines() if len(line.strip()) >= 16)


def _forms(value: str) -> Iterator[str]:
    """A value as it may stand in a text: as it is, in JSON, in Python's repr, in a URL."""
    yield value
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield repr(value)[1:-1]
    encodable = value.encode("utf-8", "surrogateescape")
    yield quote(encodable, safe="")
    yield quote_plus(encodable)


def _without_pem(text: str) -> str:
    """A private key goes with everything up to its end, or all that follows when the end was cut off."""
    kept, position = [], 0
    while begin := _PEM_BEGIN.search(text, position):
        kept += [text[position : begin.start()], REDACTED]
        end = _PEM_END.search(text, begin.end())
        position = end.end() if end else len(text)
    return "".join([*kept, text[position:]])


def _without_values_of(assignment: re.Pattern[str], text: str) -> str:
    """`NAME=value`, `"name": "value"`, `--name value`: the value goes if the name says that it is secret."""
    kept, position = [], 0
    for found in assignment.finditer(text):
        if found.start() < position or not _named_secret(found["name"]):
            continue
        if assignment is _ASSIGNED and _OF_A_VOCABULARY.search(found["name"].upper()):
            continue
        value = _VALUE.match(text, found.end())
        if value and value["value"] != REDACTED and not _harmless(found["name"], value["value"]):
            kept += [text[position : value.start("value")], REDACTED]
            position = value.end("value")
    return "".join([*kept, text[position:]])
