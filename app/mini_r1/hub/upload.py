"""The hub as publishing uses it, through huggingface_hub's own HfApi: a repository, its branches, what is missing.

What is there is asked of the hub and not remembered here: whatever killed the last try, this one sends what is missing.
A file that the hub has stored is not sent twice, even when no commit has named it yet, or another branch's has.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

import mini_r1
from mini_r1.console import shown_bytes
from mini_r1.errors import KitError
from mini_r1.hub.branch_files import Branch, File, names_holding
from mini_r1.hub.hub_errors import hub_error
from mini_r1.hub.upload_errors import retrying

T = TypeVar("T")

MAIN: Final = "main"
RECORD: Final = "mini-r1.json"
"""What the repository says of the run that it belongs to."""
NOT_OURS_TO_MIND: Final = frozenset({".gitattributes", "README.md", "LICENSE"})
"""What a repository may hold that a user has just made on the hub's pages."""
CONNECT_S: Final = 10.0
SILENCE_S: Final = 300.0
"""Seconds without a byte after which a connection is given up; the hub may think long about a large commit."""
TOKENLESS: Final = (
    "there is no token for the hub: set HF_TOKEN (or HF_TOKEN_PATH, a file), or run `huggingface-cli login`; it needs "
    "the right to write, and never goes into a recipe or on a command line"
)

Say = Callable[[str], None]


def record_of(run_id: str, **facts: Any) -> bytes:
    """RECORD's content."""
    return (json.dumps({"run_id": run_id, **facts, "kit": mini_r1.__version__}, indent=2) + "\n").encode()


def find_token() -> str | None:
    """HF_TOKEN, the file HF_TOKEN_PATH, or what `huggingface-cli login` wrote; None where there is none."""
    from huggingface_hub import get_token

    try:
        return get_token() or None
    except OSError:  # a file that this user may not read
        return None


def is_offline() -> bool:
    """Whether huggingface_hub was told to leave the network alone."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def refuse_name(name: str) -> None:
    """Before anything is made or asked.

    Raises:
        KitError: no repository can have this name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise hub_error(error, name) from error


class Repository:
    """One repository of models on the hub.

    Args:
        name: `owner/name`, or `name` in the token's own space.
        token: for the hub, and for nobody else.
        say: takes a line of progress.
        bars: let huggingface_hub draw its bars on standard error.
        sleep: waits between two tries.
    """

    def __init__(
        self, name: str, token: str, say: Say, *, bars: bool = False, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars, logging

        self.name = name
        self._token = token
        self._say: Say = lambda line: say(line.replace(token, "[token]"))
        self._sleep = sleep
        self._api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token, library_name="mini-r1")
        logging.set_verbosity_error()  # its warnings tell addresses, which are signed
        if not bars:
            disable_progress_bars()
        _never_wait_for_ever()

    @property
    def address(self) -> str:
        """Of its page."""
        return f"{self._api.endpoint}/{self.name}"

    def open(self, run_id: str, *, private: bool) -> bool:
        """Make it, or find that it is there and this run's; whether it is private.

        Raises:
            KitError: the token does not do; it is public and was not meant to be; it holds something else.
        """
        made = self._try(partial(self._api.create_repo, self.name, private=private, exist_ok=True))
        self.name = str(made.repo_id)
        facts = self._try(partial(self._api.repo_info, self.name))
        if private and not facts.private:
            raise KitError(
                f"{self.name} is public on the hub: say --public (hub_private_repo: false in a recipe), make it "
                "private on its page, or take another name"
            )
        names = {sibling.rfilename for sibling in facts.siblings or ()}
        if names - NOT_OURS_TO_MIND and self._owner(names) != run_id:
            raise KitError(
                f"{self.name} holds something else than this run, which would be overwritten: take another name"
            )
        if RECORD not in names:  # before the branches: main is filled last, and another run might come meanwhile
            self._claim(run_id)
        return bool(facts.private)

    def _owner(self, names: set[str]) -> str | None:
        """The id of the run that the repository says it belongs to."""
        from huggingface_hub import hf_hub_download

        if RECORD not in names:
            return None
        with TemporaryDirectory() as folder:
            fetch = partial(hf_hub_download, self.name, RECORD, local_dir=folder, token=self._token)
            path = self._try(partial(fetch, endpoint=self._api.endpoint))
            try:
                record = json.loads(Path(path).read_text())
            except ValueError:
                return None
        return str(record.get("run_id")) if isinstance(record, dict) else None

    def _claim(self, run_id: str) -> None:
        """Say on main whose repository it is."""
        from huggingface_hub import CommitOperationAdd

        record = CommitOperationAdd(path_in_repo=RECORD, path_or_fileobj=record_of(run_id))
        commit = partial(self._api.create_commit, self.name, operations=[record], commit_message="The run")
        self._try(partial(commit, revision=MAIN))

    def branches(self) -> set[str]:
        """The names of its branches."""
        return {ref.name for ref in self._try(partial(self._api.list_repo_refs, self.name)).branches}

    def missing(self, branch: Branch, existing: set[str]) -> list[File]:
        """The files of a branch that the hub does not have, or has otherwise; `existing` are the branches there."""
        if branch.name not in existing:
            return list(branch.files)
        info = self._try(partial(self._api.repo_info, self.name, revision=branch.name, files_metadata=True))
        return branch.missing({sibling.rfilename: sibling for sibling in info.siblings or ()})

    def send(self, branch: Branch, missing: Sequence[File], existing: set[str]) -> None:
        """Bring a branch to what it is to be.

        Args:
            branch: what it is to be.
            missing: what the hub does not have of it, at least one.
            existing: the branches that are there; the new one is added.

        Raises:
            KitError: the hub refuses it (78), or fails again and again (150).
        """
        if held := names_holding(self._token, missing):
            raise KitError(f"the hub's token stands in {', '.join(held)}: nothing of {branch.name} is sent")
        if branch.name not in existing:
            self._branch_off(branch.name)
            existing.add(branch.name)
        self._say(f"{branch.name}: {len(missing)} files, {shown_bytes(sum(file.size for file in missing))}")
        self._commit(branch, missing)

    def _branch_off(self, name: str) -> None:
        """From the first commit: a snapshot's branch has nothing of main's."""
        first = self._try(partial(self._api.list_repo_commits, self.name))[-1].commit_id
        self._try(partial(self._api.create_branch, self.name, branch=name, revision=first, exist_ok=True))

    def _commit(self, branch: Branch, files: Sequence[File]) -> None:
        """Store the large files one by one, then name them all in one commit: nobody sees half of a branch."""
        from huggingface_hub import CommitOperationAdd

        additions = []
        for file in files:
            content = file.content if isinstance(file.content, bytes) else str(file.content)
            addition = CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=content)
            additions.append(addition)
            if file.is_weights:
                store = partial(self._api.preupload_lfs_files, self.name, additions=[addition], revision=branch.name)
                self._try(partial(store, free_memory=False))
                self._say(f"{branch.name}: {file.name} stored")
        title = f"Step {branch.step}"
        commit = partial(self._api.create_commit, self.name, operations=additions, commit_message=title)
        self._try(partial(commit, revision=branch.name))
        self._say(f"{branch.name}: complete")

    def _try(self, action: Callable[[], T]) -> T:
        try:
            return retrying(action, self.name, self._say, self._sleep)
        except KitError as error:  # the hub's own words may be in it
            error.message = error.message.replace(self._token, "[token]")
            raise


def base_facts(name: str, token: str | None) -> dict[str, Any]:
    """What the hub's card of a model says: `license`, `license_name`, `license_link`; {} where it cannot be asked."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token or False)
    try:
        card = api.model_info(name, timeout=CONNECT_S).card_data
        found = card.to_dict() if card is not None else {}
    except (OSError, ValueError):  # no network, no such model, a card that cannot be read
        return {}
    wanted = ("license", "license_name", "license_link")
    return {key: found[key] for key in wanted if isinstance(found.get(key), str)}


def _never_wait_for_ever() -> None:
    """huggingface_hub 0.28 posts its commits without a timeout: a connection that dies silently would hold for ever."""
    import requests
    from huggingface_hub import configure_http_backend
    from huggingface_hub.utils._http import OfflineAdapter, UniqueRequestIdAdapter

    class Patient(UniqueRequestIdAdapter):  # type: ignore[misc]
        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            kwargs["timeout"] = kwargs.get("timeout") or (CONNECT_S, SILENCE_S)
            return super().send(request, *args, **kwargs)

    def session() -> requests.Session:
        made = requests.Session()
        adapter = OfflineAdapter() if is_offline() else Patient()
        made.mount("http://", adapter)
        made.mount("https://", adapter)
        return made

    configure_http_backend(session)
