"""Removal of secrets from text that goes to a terminal, a log or a support bundle.

Values of variables with the name of a secret are replaced, and text in the form of one. Secrets of other kinds pass.
"""

import json
import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote, quote_plus

REDACTED = "[redacted]"
SHORTEST = 4
"""Characters; a shorter value appears in any text."""

_ANYWHERE = re.compile(r"PASSWORD|PASSWD|PASSPHRASE|SECRET|CREDENTIAL|APIKEY|AUTHORIZATION")
_WORD_END = re.compile(r"(?:TOKEN|KEY|JWT|COOKIE|SIGNATURE)S?$|^(?:AUTH|OAUTH|PASS|PWD|PAT|DSN)$")
"""Ends of a word of a secret's name, or the whole word: API_KEY and GITHUBTOKEN, not KEYBOARD and TOKENIZERS."""
_VOCABULARY = re.compile(r"(?:PAD|EOS|BOS|UNK|SEP|CLS|MASK)_TOKEN$|^KEYS?$|^TOKENS$")
"""Names with another meaning in a text about models and recipes."""
_PATH = re.compile(r"(?:_PATH|_FILE|_DIR|_SOCK)$")
_NO_SECRET = frozenset({"auto", "default", "false", "none", "null", "true"})
_NUMBER = re.compile(r"[0-9][0-9_,.]*$")

# Logs are long, and others wrote what is in them, so every pattern takes linear time: each repetition is bounded, or no
# second match can begin inside it (the look-behinds).
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
_KEYS = re.compile(r"-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,32}PRIVATE KEY-----|\Z)", re.DOTALL)
"""Private keys; one whose end was cut off takes the rest of the text with it."""
_QUOTE = r"""\\{0,3}["']?"""
_ASSIGNED = re.compile(
    rf"(?<![A-Za-z0-9_])(?P<name>[A-Za-z_][A-Za-z0-9_-]{{1,63}}){_QUOTE}\s{{0,4}}[=:]\s{{0,4}}{_QUOTE}"
)
_OPTION = re.compile(rf"(?<![A-Za-z0-9_-])--(?P<name>[A-Za-z][A-Za-z0-9_-]{{1,63}}){_QUOTE},?\s{{1,32}}{_QUOTE}(?!-)")
_SCHEME = r"(?:Basic|Bearer|Digest|Token)"
_VALUE = re.compile(
    rf"(?:{_SCHEME}\s{{1,4}})?(?!{_SCHEME}\s)(?P<value>[^\s\"'\\,;&<>(){{}}\[\]]{{{SHORTEST},}})", re.IGNORECASE
)
"""An assigned value, without the scheme of an Authorization header before it."""


def redact(text: str, environment: Mapping[str, str]) -> str:
    """Return the text, in linear time, with the environment's secrets and what looks like one replaced."""
    values = sorted({form for value in _secret_values(environment) for form in _forms(value)}, key=len, reverse=True)
    if values:
        text = re.sub("|".join(map(re.escape, values)), REDACTED, text)
    text = _TOKENS.sub(REDACTED, _KEYS.sub(REDACTED, text))
    return _redact_values(_OPTION, _redact_values(_ASSIGNED, text))


def redact_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment sorted by name, with the secrets replaced."""
    return {
        name: REDACTED if is_secret(name, value) else redact(value, environment)
        for name, value in sorted(environment.items())
    }


def is_secret(name: str, value: str) -> bool:
    """Return whether a variable holds a secret, by its name; a switch, a number or the path of a file is none."""
    return _is_secret_name(name) and len(value) >= SHORTEST and not _is_harmless(name, value)


def _is_secret_name(name: str) -> bool:
    plain = name.upper().replace("-", "_").replace(".", "_")
    return bool(_ANYWHERE.search(plain) or any(_WORD_END.search(word) for word in plain.split("_")))


def _is_harmless(name: str, value: str) -> bool:
    is_path = _PATH.search(name.upper()) and value.startswith("/")
    if is_path or value.lower() in _NO_SECRET or name.upper() in ("PWD", "OLDPWD"):
        return True
    return bool(_NUMBER.match(value)) and not _ANYWHERE.search(name.upper())


def _secret_values(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        if is_secret(name, value):
            yield value
            yield from (line.strip() for line in value.splitlines() if len(line.strip()) >= 16)


def _forms(value: str) -> Iterator[str]:
    """Yield a value as it is, as in JSON, as in Python's repr, as in a URL."""
    yield value
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield repr(value)[1:-1]
    encodable = value.encode("utf-8", "surrogateescape")
    yield quote(encodable, safe="")
    yield quote_plus(encodable)


def _redact_values(assignment: re.Pattern[str], text: str) -> str:
    """Replace the value in `NAME=value`, `"name": "value"` and `--name value` if the name is a secret's."""
    kept, position = [], 0
    for found in assignment.finditer(text):
        if found.start() < position or not _is_secret_name(found["name"]):
            continue
        if assignment is _ASSIGNED and _VOCABULARY.search(found["name"].upper()):
            continue
        value = _VALUE.match(text, found.end())
        if value and value["value"] != REDACTED and not _is_harmless(found["name"], value["value"]):
            kept += [text[position : value.start("value")], REDACTED]
            position = value.end("value")
    return "".join([*kept, text[position:]])
