"""Text in this repository is plain English: none of the phrases below, except where a reason is given.

Each row has a regular expression and what to write instead. When a match is right where it is (a formula, a quotation,
another meaning of the word), list it in EXCEPTIONS.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.conftest import REPO

# What to look for, in any case and across line ends, and what to write instead.
PHRASES = {
    r"\bthe\s+seed's|\bseed's\b": "the original's; the published ... (a seed is a random seed)",
    r"\bthe\s+seed\b(?!\s+(of|is|that|for|from|and|decides?|itself|sets?)\b)(?![`_:)])": "the original; a random seed",
    r"\bseed\s+(kit|notebook|recipe|curve|prompt|project|scoring)\b|scoring:\s*seed": "original, published",
    r"\bmend(s|ed|ing|able)?\b": "fix, patch",
    r"(?<!chat )(?<!white )(?<!waiting )\brooms?\b(?!\s+id)": "space, memory; package",
    r"\bhouses?\b": "package, project",
    r"\b(go|goes|going|went|gone)\s+on\b(?!\s+(the|a|an|its|each|node|GPU|disk|top)\b)": "resume, continue",
    r"\bgo(es|ing)?\s+on\s+from\b": "resume from",
    r"\bstart(s|ed|ing)?\s+(it\s+|them\s+)?again\b": "restart, requeue, retry, resume",
    r"\bas\s+far\s+as\b": "(say it plainly)",
    r"\bso\s+many\b": "N, the number of",
    r"\bso\s+often\b": "maximum number of, N times",
    r"\bwho(so)?ever\b": "(say who)",
    r"\bwhatever\b": "any, (say what)",
    r"\bnobody\b(?!/|-|['\"]?\)|['\"],|\s=|\s*@)": "no one, nothing, (passive)",
    r"\b(of|a)\s+(its|their|his|one's|our|your|the\s+\w+'s)\s+own\b": "its own X, a separate X",
    r"\bbeside\b": "next to, compared with, in addition to",
    r"\bstands\b": "is, exists, is written",
    r"\b(stood|standing\s+there)\b": "was",
    r"\blet(s|ting)?\s+go\b": "free, release",
    r"\bin\s+(a\s+)?(few\s+|plain\s+|its\s+|our\s+|their\s+)?words?\b(?!\s+(of|if)\b|[:)\]\[}])": "as text",
    r"\bwithout\s+a\s+word\b": "without output",
    r"\btold\b": "report, print, pass",
    r"\bmanners?\b": "style",
    r"(?<!segmentation )(?<!page )(?<!seg)(?<!bus )\bfault(s|y)?\b(?![-_ ]toleran)(?!handler)": "error, problem",
    r"\bstubborn\w*\b": "retry limits",
    r"\bhow\s+it\s+ended\b": "exit code",
    r"\b(by|of)\s+a\s+coin\b|\bcoin\b": "random reward",
    r"\bnot\s+the\s+rise\b": "smoke run",
    r"\bwithout\s+(any\s+)?rights\b": "unprivileged",
    r"\banswers\s+this\s+machine\b": "binds to localhost",
    r"\bway\s+out\b": "egress, outbound access",
    r"\bentropy\s+(that\s+)?is\s+gone\b": "entropy collapse",
    r"\bis\s+(it|a\s+run|the\s+run)\s+well\b": "health check",
    r"\bwho\s+does\s+what\b": "assigns GPUs to roles",
    r"\ball\s+there\s+is\s+to\s+do\b": "works on its own",
    r"\bthe\s+real\s+thing\b": "(say what)",
    r"\bat\s+once\s*,\s+each\s+with\b": "together, with line numbers",
    r"\bis\s+to\s+be\s+expected\b|\bnot\s+to\s+be\s+expected\b": "expect",
    r"\bthe\s+looking\b": "following",
    r"\bdecent\b": "(say how long)",
    r"\b(shell's|user's|its)\s+wish(es)?\b": "request, option",
    r"\bhas\s+taken\s+this\b": "accepted",
    r"\bwould\s+be\s+a\s+stamp\b": "too small to read",
    r"\bhas\s+seen\s+the\b|\bnobody\s+here\b": "(say plainly)",
    r"\bcame\s+to\s+(no|nothing|its|a)\b|\bcome\s+to\s+nothing\b": "wrote no, made no",
    r"\bis\s+none\s+of\s+(ours|its|theirs)\b|\bnone\s+of\s+ours\b": "(say whose)",
    r"\bis\s+nothing\s+without\b|\bit\s+is\s+nothing\b": "needs",
    r"\bshows?\s+it\s+to\s+others\b": "doesn't exist, or your token has no access",
    r"\bis\s+held\s+against\b|\bheld\s+against\b|\bholds?\s+(it|them)\s+against\b": "is checked against",
    r"\blook(s|ed|ing)?\s+after\b": "(say what it does)",
    r"\bat\s+hand\b": "available",
    r"\bfor\s+want\s+of\b": "without, for lack of",
    r"\bone\s+and\s+the\s+same\b": "the same",
    r"\bthis\s+and\s+that\b|\bsuch\s+a\s+one\b|\bthe\s+like\b": "(say what)",
    r"\bhenceforth\b|\bthereof\b|\bwherewith\b|\bwherein\b|\bthereby\b|\bhitherto\b": "(plain word)",
}
DOCSTRING = re.compile(r'"""Of\b')
PATTERN = re.compile("|".join(f"(?:{phrase})" for phrase in PHRASES), re.IGNORECASE)

SKIPPED = re.compile(
    r"LICENSE|bench/RESULTS\.md|bench/.*\.(?:json|jsonl|txt|csv)|app/locks/.*|docs/pictures/.*|tests/assets/.*"
    r"|tests/test_wording\.py|.*\.(?:svg|png|jsonl|parquet|csv|lock|safetensors|npz|gz)"
)
"""History, locks, data and this file."""

EXCEPTIONS: dict[tuple[str, str], str] = {
    # File, a part of the line around a match: the reason.
    ("bench/scorer.py", "Let me start again"): "text of a model",
    ("tests/test_recipe.py", "scoring: seed"): "an old value, refused with its new name",
}
MOST_EXCEPTIONS = 20


def files() -> list[str]:
    if not (REPO / ".git").exists():
        pytest.skip("needs git")
    listed = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.splitlines() if not SKIPPED.fullmatch(name) and (REPO / name).is_file()]


def matches(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the number of the line, the match, and its line or lines."""
    for pattern in (PATTERN, DOCSTRING):
        for match in pattern.finditer(text):
            start = text.rfind("\n", 0, match.start()) + 1
            end = text.find("\n", match.end())
            yield text.count("\n", 0, match.start()) + 1, match[0], text[start : end if end >= 0 else None]


def test_no_ruled_out_phrase() -> None:
    found, used = [], set()
    for name in files():
        try:
            text = (REPO / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, phrase, lines in matches(text):
            exception = next((key for key in EXCEPTIONS if key[0] == name and key[1] in lines), None)
            if exception is None:
                found.append(f"{name}:{number}: {' '.join(phrase.split())}")
            else:
                used.add(exception)
    assert found == []
    assert used == set(EXCEPTIONS), "an exception that nothing needs"
    assert len(EXCEPTIONS) <= MOST_EXCEPTIONS


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("the seed's curve", "the seed's"),
        ("a process of\n    its own", "of\n    its own"),
        ("All faults are told at once", "faults"),
        ("It goes on from step 3", "goes on"),
        ("make room", "room"),
        ('"""Of a node.', '"""Of'),
    ],
)
def test_a_phrase_is_found(text: str, phrase: str) -> None:
    assert next(matches(text))[1].lower() == phrase.lower()


@pytest.mark.parametrize(
    "text",
    [
        "shuffled with the random seed",
        "a default",
        "segmentation fault",
        "going on the node",
        "nobody/tiny",
        "for x in words:",
    ],
)
def test_a_plain_text_is_not(text: str) -> None:
    assert list(matches(text)) == []
