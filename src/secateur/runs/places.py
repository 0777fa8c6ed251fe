"""Folders that hold something else than a model, such as that of a run with several budgets: what they are."""

from __future__ import annotations

from pathlib import Path

from secateur.errors import ModelError

__all__ = ["holds_model", "refuse_other"]

_MODEL, _NETWORK, _ELASTIC = "config.json", "cut.json", "elastic.json"
_OTHERS = ("modules.json", "adapter_config.json")
"""Files of sentence-transformers and of adapters, of which others tell."""
_SHOWN = 2


def refuse_other(source: object, *, networks: bool = False) -> None:
    """Raise `ModelError` for a folder without a model that holds one in another place, or that of a cut network.

    source: what a user gave; all that is no such folder passes. networks: whether cut networks pass, too.
    """
    if not isinstance(source, str | Path) or not str(source).strip():
        return
    folder = Path(source).expanduser()
    if not folder.is_dir() or any((folder / name).is_file() for name in (_MODEL, *_OTHERS)):
        return
    if (folder / _NETWORK).is_file():
        if networks:
            return
        raise ModelError(
            f"{source} holds a network that was cut ({_NETWORK}), and not a language model: use a recipe on networks, "
            "or `secateur prune`"
        )
    files = sorted(path.name for path in folder.glob("*.gguf"))
    if files:
        one = "a GGUF file: give the file" if len(files) == 1 else "GGUF files: give one of them"
        raise ModelError(f"{source} has no {_MODEL} and holds {one}, {Path(source) / files[0]}")
    inside = sorted((path for path in folder.iterdir() if holds_model(path)), key=_is_elastic)
    if inside:
        named = " or ".join(str(Path(source) / path.name) for path in inside[:_SHOWN])
        which = "one of them, such as " if len(inside) > 1 else ""
        where = "models in folders of their own" if len(inside) > 1 else "a model in a folder of its own"
        raise ModelError(f"{source} has no {_MODEL} and holds {where}: give {which}{named}")


def holds_model(folder: Path) -> bool:
    """Whether a language model, an elastic one or a cut network was saved in `folder` itself."""
    return any((folder / name).is_file() for name in (_MODEL, _NETWORK))


def _is_elastic(folder: Path) -> tuple[bool, str]:
    """Results go first, then what holds all sizes."""
    return (folder / _ELASTIC).is_file(), folder.name
