"""`prefetch` and `publish`: fetch what a recipe needs from the hub, and send a run there."""

import json
import os
from typing import Annotated

from typer import Option

from mini_r1.cli.command_tools import find_recipe_for_other_node, progress_printer, refuse_starting
from mini_r1.cli.options import Json, RecipeName, RunPath, Set
from mini_r1.console import printable, progress_console
from mini_r1.run.run_dir import RunDir


def prefetch(recipe: RecipeName, overrides: Set = None, as_json: Json = False) -> None:
    """Fetch a recipe's model, tokenizer and data into the hub's cache.

    Then run the job with HF_HUB_OFFLINE=1. Pickled weights are never fetched.
    After a failure, the same command resumes.

    Examples:
      mini-r1 prefetch mini-r1-3b
      HF_HOME=/shared/hf mini-r1 prefetch my.yaml --set model_revision=main
    """
    from mini_r1.hub import prefetch as fetching

    path = find_recipe_for_other_node(recipe)
    record, lines = fetching.prefetch(path, overrides or [], os.environ, progress_console())
    print(json.dumps(record) if as_json else printable("\n".join(lines)))


def publish(
    run: RunPath,
    repo: Annotated[str, Option(help="Hub repository: owner/name, or a name in your namespace.")],
    snapshot: Annotated[str | None, Option(metavar="BEST|N", help="Only this one; default: all, BEST on main.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Send nothing: show files and model card.")] = False,
    public: Annotated[bool, Option("--public", help="Make a new repository public; default: private.")] = False,
    as_json: Json = False,
) -> None:
    """Publish a run on the Hugging Face hub: model, tokenizer and model card.

    Each snapshot becomes a branch, step-N. BEST has the highest held-out
    success. The token comes from HF_TOKEN, HF_TOKEN_PATH or
    `huggingface-cli login`. After a failure, the same command sends what is
    missing. Needs no torch.

    Examples:
      mini-r1 publish runs/first --repo first --dry-run
      mini-r1 publish runs/first --repo me/first --snapshot BEST
    """
    from mini_r1.hub import publish as publishing

    refuse_starting(RunDir(run), "it has no snapshot to publish yet")
    progress = progress_printer()
    if dry_run:
        made = publishing.dry_run(run, repo, snapshot, progress)
        print(json.dumps(made.to_dict()) if as_json else printable("\n".join([*made.lines(), "", made.main.card])))
        return
    done = publishing.publish(run, repo, snapshot, public=public, report=progress)
    print(json.dumps(done.to_dict()) if as_json else done.sent_line())
