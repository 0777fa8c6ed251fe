"""The Hugging Face Hub: which names are its ids, what a card there says of a model, and putting a folder there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from secateur._utils.disk import read_object
from secateur.errors import InputError, ServerError

__all__ = ["check_id", "is_id", "list_names", "push", "read_card"]

_LEFT = ["work/*", ".*", "run.yaml", "evidence.json", "report.html"]
"""What of a run directory is no part of its model, and tells of the machine it was made on."""
_NAMED = {"adapter_config.json": ("base_model_name_or_path",), "cut_map.json": ("base", "name")}
"""Files of a model's folder that name another model -> the keys under which they do."""
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_id(name: str) -> bool:
    """Whether a name is of the form owner/name, and no file or folder here."""
    return bool(_ID.fullmatch(name)) and not Path(name).exists()


def read_card(folder: Path) -> Mapping[str, object]:
    """The metadata of the card in `folder`; empty where there is no card, or none that can be read."""
    import yaml
    from huggingface_hub import metadata_load

    try:
        return metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def check_id(repo_id: str) -> None:
    """Raise `InputError` for a name that no repository can have, and where nobody has logged in."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} is no name of a repository on the Hub: give OWNER/NAME") from error
    if not get_token():
        raise InputError(f"pushing to {repo_id} needs a token of the Hub: run `hf auth login`, or set HF_TOKEN")


def list_names(folder: Path) -> dict[str, str]:
    """File of `folder` -> the model that it names, where that is no id of the Hub: a place on this machine."""
    found = dict[str, str]()
    for file, keys in _NAMED.items():
        name: object = read_object(folder / file)
        for key in keys:
            name = name.get(key) if isinstance(name, Mapping) else None
        if isinstance(name, str) and name and not is_id(name):
            found[file] = name
    return found


def push(folder: Path, repo_id: str, *, public: bool = False) -> str:
    """Upload the model in `folder` to a repository of the Hub, which is made if need be; returns its address.

    A new repository is private unless `public`; one that is there stays as it is. Raises `InputError` as `check_id`
    does, and for a folder without a card; `ServerError` where the Hub refuses or can't be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    check_id(repo_id)
    if not (folder / "README.md").is_file():
        raise InputError(f"{folder} holds no model to push to {repo_id}: nothing was cut, or it was not saved here")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        url = api.create_repo(repo_id, private=not public, exist_ok=True)
        message = "Upload a model made by secateur"
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, ignore_patterns=_LEFT, commit_message=message)
    except OfflineModeIsEnabled as error:
        raise ServerError(f"{folder} was not pushed to {repo_id}: HF_HUB_OFFLINE is set, so unset it") from error
    except HfHubHTTPError as error:
        raise ServerError(
            f"the Hub refused {repo_id} ({_line(error)}): see that the token may write there; {folder} is complete"
        ) from error
    except Exception as error:  # of whichever HTTP library its client uses
        raise ServerError(
            f"the Hub can't be reached to push {repo_id} ({_line(error)}): {folder} is complete, push it later with "
            f"hf upload {repo_id} {folder}"
        ) from error
    return str(url)


def _line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0].strip() if lines else type(error).__name__)[:200]
