"""A repository on the hub that a run is published to, through huggingface_hub's HfApi.

Nothing is remembered here: huggingface_hub asks the hub what it has, also of files that no commit names yet, and sends
the rest. So an interrupted publication is resumed by running it again.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from mini_r1.console import shown_bytes
from mini_r1.errors import ExitCode, KitError
from mini_r1.hub.branch_contents import RECORD, Branch, record_content
from mini_r1.hub.hub_access import MAIN
from mini_r1.hub.hub_errors import HubError, cause, hub_error
from mini_r1.machine.paths import is_offline
from mini_r1.run.files import read_object

T = TypeVar("T")

OWN_FILES: Final = frozenset({".gitattributes", "README.md", "LICENSE"})
"""Files that a repository may hold when a user has just made it on the hub's pages."""
CONNECT_S: Final = 10.0
SILENCE_S: Final = 300.0
"""Seconds without a byte after which a connection is given up; the hub may take long for a large commit."""
ATTEMPTS: Final = 7
"""With the pauses between them about a minute, in which a hub that restarts is back."""
PAUSE: Final = wait_exponential_jitter(initial=1, max=32)
LONGEST_PAUSE_S: Final = 300.0
"""Longest pause that the hub may ask for: its rate limits are counted in windows of five minutes."""
LOGIN_HINT: Final = (
    "there is no token for the hub: set HF_TOKEN (or HF_TOKEN_PATH, a file), or run `huggingface-cli login`; it needs "
    "write access, and never goes into a recipe or on a command line"
)

Report = Callable[[str], None]


def find_token() -> str | None:
    """Return the token of HF_TOKEN, of the file HF_TOKEN_PATH, or of `huggingface-cli login`; None if there is none."""
    from huggingface_hub import get_token

    try:
        return get_token() or None
    except OSError:  # a file that this user may not read
        return None


def require_token() -> str:
    """Return the token; raise KitError if there is none, or no network to use it."""
    token = find_token()
    if token is None:
        raise KitError(LOGIN_HINT)
    if is_offline(os.environ):
        raise KitError("HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: unset it")
    return token


class Repository:
    """A model repository on the hub; every request is retried while that may help.

    The name is `owner/name`, or `name` in the token's own space. The token is removed from every message.
    """

    def __init__(self, name: str, token: str, report: Report) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars, logging

        self.name = name
        self._token = token
        self._report: Report = lambda line: report(line.replace(token, "[token]"))
        self._api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token, library_name="mini-r1")
        self._retrying = Retrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=_pause,
            retry=retry_if_exception(lambda error: isinstance(error, KitError) and error.exit_code == ExitCode.RETRY),
            before_sleep=self._announce_retry,
            reraise=True,
        )
        logging.set_verbosity_error()  # its warnings show addresses, which are signed
        if not sys.stderr.isatty():
            disable_progress_bars()
        _limit_waiting()

    @property
    def address(self) -> str:
        """Return the address of its page."""
        return f"{self._api.endpoint}/{self.name}"

    def open(self, run_id: str, *, private: bool) -> bool:
        """Make the repository, or check that it belongs to this run; return whether it is private.

        Raise KitError if the token can't write there, it is public and should be private, or holds something else.
        """
        self.name = str(self._try(self._api.create_repo, self.name, private=private, exist_ok=True).repo_id)
        facts = self._try(self._api.repo_info, self.name)
        if private and not facts.private:
            raise KitError(
                f"{self.name} is public on the hub: pass --public (hub_private_repo: false in a recipe), make it "
                "private on its page, or use another name"
            )
        names = {sibling.rfilename for sibling in facts.siblings or ()}
        if names - OWN_FILES and (RECORD not in names or self._read_record().get("run_id") != run_id):
            raise KitError(f"{self.name} holds something else than this run and would be overwritten: use another name")
        if RECORD not in names:  # now, because main is filled last, and another run might come meanwhile
            self._commit(MAIN, {RECORD: record_content(run_id)}, "The run")
        return bool(facts.private)

    def send(self, branch: Branch) -> bool:
        """Make a branch what it should be, with one commit; return whether that changed it.

        Raise KitError if a file holds the token, the hub refuses it (78) or keeps failing (150).
        """
        if found := branch.files_with(self._token):
            raise KitError(f"the hub's token is in {', '.join(found)}: nothing of {branch.name} is sent")
        heads = {ref.name: ref.target_commit for ref in self._try(self._api.list_repo_refs, self.name).branches}
        if branch.name not in heads:  # from the first commit: the branch of a snapshot has nothing of main's
            first = self._try(self._api.list_repo_commits, self.name)[-1].commit_id
            self._try(self._api.create_branch, self.name, branch=branch.name, revision=first, exist_ok=True)
        self._report(f"{branch.name}: {len(branch.files)} files, {shown_bytes(branch.size)}")
        sent = self._commit(branch.name, branch.files, f"Step {branch.step}") != heads.get(branch.name)
        self._report(f"{branch.name}: {'complete' if sent else 'already there'}")
        return sent

    def _commit(self, branch: str, files: dict[str, Path | bytes], message: str) -> str:
        """Commit what differs and return the branch's head."""
        from huggingface_hub import CommitOperationAdd

        # Not HfApi.upload_folder, which hashes every file again for each attempt.
        operations = [self._try(CommitOperationAdd, name, content) for name, content in files.items()]
        options = {"operations": operations, "commit_message": message, "revision": branch}
        return str(self._try(self._api.create_commit, self.name, **options).oid)

    def _read_record(self) -> dict[str, Any]:
        with TemporaryDirectory() as folder:
            return read_object(Path(self._try(self._api.hf_hub_download, self.name, RECORD, local_dir=folder)))

    def _try(self, action: Callable[..., T], *args: Any, **options: Any) -> T:
        result: T = self._retrying(self._attempt, action, *args, **options)
        return result

    def _attempt(self, action: Callable[..., T], *args: Any, **options: Any) -> T:
        try:
            return action(*args, **options)
        except Exception as error:
            described = hub_error(error, self.name)
            described.message = described.message.replace(self._token, "[token]")  # the hub may repeat it
            raise described from error

    def _announce_retry(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        reason = error.detail if isinstance(error, HubError) else str(error)
        self._report(f"{reason}; trying again in {state.upcoming_sleep:.0f} s")


def _pause(state: RetryCallState) -> float:
    """Return seconds: doubled at each attempt, or those of the hub's Retry-After."""
    error = state.outcome.exception() if state.outcome else None
    response = getattr(cause(error), "response", None) if isinstance(error, Exception) else None
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return max(PAUSE(state), min(float(asked), LONGEST_PAUSE_S) if asked.isdecimal() else 0.0)


def base_licence(name: str, token: str | None) -> dict[str, Any]:
    """Return `license`, `license_name` and `license_link` of a model's card, {} if the hub can't be asked."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token or False)
    try:
        card = api.model_info(name, timeout=CONNECT_S).card_data
        found = card.to_dict() if card is not None else {}
    except (OSError, ValueError):  # no network, no such model, a card that can't be read
        return {}
    return {key: found[key] for key in ("license", "license_name", "license_link") if isinstance(found.get(key), str)}


def _limit_waiting() -> None:
    """Give every request a timeout: huggingface_hub 0.28 sends commits without one, and a dead connection hangs."""
    import requests
    from huggingface_hub import configure_http_backend

    class Session(requests.Session):  # type: ignore[misc]
        def send(self, request: Any, **options: Any) -> Any:
            options["timeout"] = options.get("timeout") or (CONNECT_S, SILENCE_S)
            return super().send(request, **options)

    configure_http_backend(Session)
