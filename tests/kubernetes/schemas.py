"""What a strict schema says of a manifest: unknown fields, wrong types, what is missing.

Kubernetes' own kinds by its published schemas. A PyTorchJob by the classes of its SDK, because its custom resource lets
nearly everything pass; each pod template in it by Kubernetes' schema again.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

from jsonschema import Draft202012Validator
from kubeflow.training import models
from referencing import Registry, Resource

from tests.kubernetes.manifests import Manifest, named

VERSION = "1.32"
SCHEMAS = resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{VERSION}.0-local-strict"
TYPES = {"str": str, "int": int, "bool": bool}
TEMPLATE = "V1PodTemplateSpec"
METADATA = "V1ObjectMeta"


def schema_errors(manifest: Manifest) -> Iterator[str]:
    """A sentence for each field that the schema refuses; for Kubernetes' own kinds the first one alone."""
    if manifest.get("kind") == "PyTorchJob":
        if manifest.get("apiVersion") != "kubeflow.org/v1":
            yield f"{named(manifest)}: apiVersion is {manifest.get('apiVersion')}, not kubeflow.org/v1"
        yield from _walk(manifest, "KubeflowOrgV1PyTorchJob", named(manifest))
    else:
        yield from _core_faults(manifest, named(manifest))


def _core_faults(manifest: Manifest, where: str) -> Iterator[str]:
    validator = _validator(manifest["apiVersion"], manifest["kind"])
    if validator is None:
        yield f"{where}: Kubernetes {VERSION} knows no such kind"
        return
    for error in itertools.islice(validator.iter_errors(manifest), 1):
        yield f"{where}: {'.'.join(map(str, error.path))}: {error.message[:200]}"


@functools.cache
def _validator(api_version: str, kind: str) -> Draft202012Validator | None:
    """Return what `kubernetes_validate.validate` makes anew, from megabytes of JSON, at every call."""
    group, _, version = api_version.rpartition("/")
    file = SCHEMAS / "-".join(filter(None, (kind.lower(), group.partition(".")[0], f"{version}.json")))
    if not file.is_file():
        return None
    return Draft202012Validator(json.loads(file.read_text()), registry=_definitions())


@functools.cache
def _definitions() -> Registry[Any]:
    return (Resource.from_contents(json.loads((SCHEMAS / "_definitions.json").read_text())) @ Registry()).crawl()


def _walk(value: Any, type_name: str, where: str) -> Iterator[str]:
    """Hold a value against a type as the SDK writes it: `int`, `dict(str, Class)`, `list[Class]`, `Class`."""
    if type_name == TEMPLATE:
        yield from _core_faults({"apiVersion": "v1", "kind": "PodTemplate", "template": value}, where)
    elif type_name == METADATA:
        yield from _core_faults({"apiVersion": "v1", "kind": "PodTemplate", "metadata": value}, where)
    elif type_name in TYPES:
        if type(value) is not TYPES[type_name]:
            yield f"{where}: {value!r} is no {type_name}"
    elif of_many := re.fullmatch(r"dict\(str, (.+)\)", type_name):
        for key, item in value.items():
            yield from _walk(item, of_many[1], f"{where}.{key}")
    else:
        known = getattr(models, type_name)
        fields = {json: known.openapi_types[name] for name, json in known.attribute_map.items()}
        if not isinstance(value, dict):
            yield f"{where}: {value!r} is no {type_name}"
            return
        for key, item in value.items():
            if key in fields:
                yield from _walk(item, fields[key], f"{where}.{key}")
            else:
                yield f"{where}: unknown field {key}"
