"""Fill release-notes.md from the environment of the release workflow, and print it.

Needs GITHUB_REPOSITORY, GITHUB_REF_NAME, IMAGE, RUNTIME_DIGEST and CPU_DIGEST. Python's own library is all it uses: the
runner's Python is enough.
"""

import os
import re
import sys
from pathlib import Path
from string import Template

TEMPLATE = Path(__file__).with_name("release-notes.md")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def notes(environment: dict[str, str]) -> str:
    """The notes; KeyError names what is missing, ValueError what is no digest."""
    repository, tag = environment["GITHUB_REPOSITORY"], environment["GITHUB_REF_NAME"]
    digests = {name: environment[name] for name in ("RUNTIME_DIGEST", "CPU_DIGEST")}
    for name, digest in digests.items():
        if not DIGEST.fullmatch(digest):
            raise ValueError(f"{name} is {digest!r}, not a digest: did the job that pushes the image hand it on?")
    registry, _, path = environment["IMAGE"].partition("/")
    # The certificate has the repository as it is written; only the image's name is lower case.
    workflow = f"https://github.com/{repository}/.github/workflows/release.yml".replace(".", r"\.")
    # `substitute`, not `safe_substitute`: a placeholder that nothing fills must not be published.
    return Template(TEMPLATE.read_text()).substitute(
        digests,
        VERSION=tag.removeprefix("v"),
        TAG=tag,
        IMAGE=environment["IMAGE"],
        REGISTRY=registry,
        IMAGE_PATH=path,
        REPOSITORY=repository,
        IDENTITY=f"^{workflow}@refs/tags/v",
    )


if __name__ == "__main__":
    try:
        sys.stdout.write(notes(dict(os.environ)))
    except KeyError as missing:
        sys.exit(f"release_notes.py: {missing} is not set")
    except ValueError as wrong:
        sys.exit(f"release_notes.py: {wrong}")
