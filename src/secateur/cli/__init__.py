"""The command line: flags in, one clear line out.

A recipe's flags come from its signature, read without importing it; torch and all else that is slow to load is
imported inside the commands.

Exit codes: 0, all that was asked for was reached; 1, a result was made but a budget was missed or failed; 2, refused
or stopped by an error that says what to do; 130, Ctrl-C.
"""

from __future__ import annotations

import ast
import importlib
import inspect as introspection
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur import __version__, recipes
from secateur._utils import distributed, workers
from secateur.errors import InputError, MendedWarning, SecateurError
from secateur.vocabulary import Budget, listed

if TYPE_CHECKING:
    from rich.console import Console

    from secateur.runs.estimates import Estimate
    from secateur.vocabulary import Evidence

__all__ = ["main"]

_CONFIG = "A run.yaml with the same keys; flags win over it."
_HELD_OUT = "What quality is measured on, in the same forms; a part of --data, which is held out, without."
_TEXT = "The column of texts."
_LABEL = "The column of classes, or of an .npz file the array; '' for none."
_SIZES = "Sides of squares that part small, medium and large boxes: 8,24 pixels, 5%,15% of a side. COCO's if not given."
_SHAPE = "Shape of a network's input, 1x3x224x224 say."
_SCORES = "magnitude, l1, taylor, ..., or file.py:function."
_SCOPE = "Which sites share one ranking."
_SCOPES = "local|kind|global|isomorphic|SITE=POOL,..."
_NORMALISE = "What makes scores of different sites comparable first."
_PROTECT = "A module, parameter or site that stays whole. Again for more."
_Text = Annotated[str, typer.Option("--text", help=_TEXT)]
_Label = Annotated[str, typer.Option("--label", help=_LABEL)]
_Sizes = Annotated[str | None, typer.Option("--sizes", help=_SIZES, metavar="LOW,HIGH")]
_SHARED = ("seed", "batch", "length", "dry_run")
"""Options of recipes for which `run` has flags of its own."""
_WRITTEN = "str | "
"""How the annotation of a list begins that may be given as one text, with commas."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"] or ["--help"]
    # Set before anything imports them: what libraries would print around our one line.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not debug:
        warnings.simplefilter("ignore")
        workers.libraries()
    interrupts: list[int] = []
    try:
        with _mending(), _noting(interrupts):
            code = typer.main.get_command(_app(given))(args=given, prog_name="secateur", standalone_mode=False)
        if code == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        return int(code or 0)
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _stop(_INTERRUPTED, 130, debug)
    except SecateurError as error:
        return _stop(_INTERRUPTED, 130, debug) if interrupts else _stop(str(error), error.exit_code, debug)
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _stop(_INTERRUPTED, 130, debug) if interrupts else _stop(_explain(error), 2, debug)


@contextmanager
def _mending() -> Iterator[None]:
    """Warnings of what was mended are told, as a note and at once, whatever becomes of others."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", MendedWarning)
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, MendedWarning):
                print(f"note: {' '.join(str(message).split())}", file=sys.stderr)
            else:
                shown(message, category, *where, **more)

        warnings.showwarning = show
        yield


_INTERRUPTED = "interrupted; the same command resumes where it stopped"


@contextmanager
def _noting(interrupts: list[int]) -> Iterator[None]:
    """Note each Ctrl-C: compiled code may turn the KeyboardInterrupt that it raises into an error of its own."""

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _explain(error: Exception) -> str:
    from secateur._utils.disk import is_disk_full

    if hasattr(error, "format_message"):  # the parser's: a wrong flag, a missing argument
        return f"{error.format_message()} (--help shows what there is)"
    if is_disk_full(error):
        return "disk full: free some space and run the same command again"
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    return f"unexpected {type(error).__name__}: {error} (add --debug to see where)"


def _stop(message: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"secateur: {' '.join(message.split())}", file=sys.stderr)
    return code


def _app(given: Sequence[str]) -> typer.Typer:
    # The bare --help stays plain, for speed; the pages of commands are laid out by rich.
    bare = not given or given[0].startswith("-")
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None if bare else "rich",
        help="Make trained things smaller by pruning, win back what was lost by distilling, and prove it.",
        epilog="--debug with any command shows where an error came from.",
    )
    app.callback(invoke_without_command=True)(_root)
    app.command("list")(list_recipes)
    app.command("show")(show)
    app.command("run")(_run_command(_named_recipe(given)))
    app.command("prune")(prune)
    app.command("distill")(distill)
    app.command("prune-context")(_prune_context_command(_reader_named(given)))
    app.command("train-pruner")(_train_pruner_command(_named_recipe(given, "train-pruner")))
    app.command("prune-data")(prune_data)
    app.command("study")(_study_command(_named_recipe(given, "study")))
    app.command("inspect")(inspect)
    app.command("measure")(measure)
    app.command("report")(report)
    app.command("export")(export)
    return app


def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False) -> None:
    if version:
        print(f"secateur {__version__}")
        raise typer.Exit


# ----------------------------------------------------------------------------------------------------- recipes


def list_recipes(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """The recipes there are."""
    cards = recipes.cards()
    if as_json:
        print(json.dumps(cards, indent=1))
        return
    width = max(map(len, cards), default=0)
    for name, card in cards.items():
        print(f"{name:<{width}}  {card['family']:<9} {card['title']}")


def show(recipe: Annotated[str, typer.Argument(help="A recipe's name.")]) -> None:
    """A recipe's card, method and options."""
    options = recipes.signature(recipe)
    card = recipes.cards()[recipe]
    width = max(map(len, card))
    for key, value in card.items():
        if value:
            print(f"{key:<{width}}  {value}")
    print(f"\n{recipes.describe(recipe).split('Args:')[0].strip()}\n\nOptions:")
    width = max((len(option.name) for option in options), default=0)
    for option in options:
        print(f"  {option.name:<{width}}  {option.help} [{option.annotation}, {_fallback(option)}]")


def _fallback(option: recipes.Option) -> str:
    """What holds where an option is left out."""
    return "required" if option.default is introspection.Parameter.empty else f"default {option.default!r}"


# --------------------------------------------------------------------------------------------------------- run


def _named_recipe(given: Sequence[str], command: str = "run") -> str | None:
    """The recipe, or study, which the command line of `command` names, so that its flags are known.

    It is the first word that is no value, or else stands in the file that --config names.
    """
    config = None
    words = iter(given[1:] if given and given[0] == command else ())
    for word in words:
        if not word.startswith("-"):
            return word
        flag, equals, value = word.partition("=")
        if not equals and not _is_switch(flag):
            value = next(words, "")
        if flag == "--config":
            config = value
    return _configured_recipe(config, "study" if command == "study" else "recipe") if config else None


def _is_switch(flag: str) -> bool:
    """Whether `flag` takes no value: one of a command itself, or one that is on or off in some recipe."""
    name = flag[2:].replace("-", "_")
    if name in ("dry_run", "overwrite", "stream", "help") or name.startswith("no_"):
        return True
    options = (one for recipe in recipes.cards() for one in (*recipes.signature(recipe), *recipes.training(recipe)))
    return any(option.name == name and option.annotation == "bool" for option in options)


def _configured_recipe(config: str, key: str) -> str | None:
    """The recipe, or study, that the YAML file `config` names. What is wrong is said where it is read for good."""
    import yaml

    try:
        values = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    recipe = values.get(key) if isinstance(values, dict) else None
    return recipe if isinstance(recipe, str) else None


def _run_command(recipe: str | None) -> Callable[..., None]:
    """The `run` command, with the flags of `recipe` where one is named."""
    named = recipe in recipes.cards()
    options = [o for o in recipes.signature(recipe) if o.name not in _SHARED] if recipe and named else []

    kinds: dict[str, tuple[Any, Any]] = {
        "recipe": (Annotated[str | None, typer.Argument(help="A recipe's name: `secateur list` shows them.")], None),
        "model": (Annotated[str | None, typer.Argument(help="A model folder or Hub id.")], None),
    }

    def flag(name: str, kind: Any, help: str, default: Any = None, **more: Any) -> None:
        kinds[name.replace("-", "_")] = (Annotated[kind, typer.Option(f"--{name}", help=help, **more)], default)

    budget = "How much may stay: speedup=2x, params=50%, ... Give it again for one more model."
    flag("budget", list[str] | None, budget, metavar="MEASURE=AMOUNT")
    flag("data", str | None, "A .txt, .jsonl or .parquet file, a folder of them, or hub:owner/name.")
    flag("held-out", str | None, _HELD_OUT)
    flag("text", str | None, _TEXT, show_default="text")
    flag("label", str | None, _LABEL, show_default="label")
    flag("sizes", str | None, _SIZES, metavar="LOW,HIGH")
    flag("out", Path | None, "The run directory, where the result will stand.")
    flag("config", Path | None, _CONFIG)
    flag("dry-run", bool, "Say what would be cut and saved; train and write nothing.", False)
    flag("overwrite", bool, "Start anew where --out holds another run.", False)
    flag("seed", int | None, "Of everything random.")
    flag("threads", int | None, "Of torch, also while measuring.")
    flag("device", str | None, "Where to prune and to measure: cpu (the default), cuda, ...")
    flag("batch", int | None, "Sequences per batch of the measured environment.")
    flag("length", int | None, "Tokens per sequence of the measured environment.")
    fresh = "Also train networks of the cut shape from scratch, for as long (E), for as many FLOPs (B), or both."
    flag("stream", bool, "Read the model block by block from the disk: for models larger than memory.", False)
    flag("scratch-baseline", str | None, fresh, metavar="E|B|both")
    flag("scratch-epochs", int | None, "Of those networks: what the original was trained for; the run's own.")
    flag("scratch-lr", float | None, "Of those: the learning rate; the run's own.")
    flag("scratch-cap", float | None, "Of those of B: at most this many times the epochs.")
    kinds |= _flags(f"Options of {recipe}", options)

    def command(**values: Any) -> None:
        if values["recipe"]:
            recipes.signature(values["recipe"])  # an unknown recipe is refused before its missing arguments are
        given = {
            key: value for key, value in values.items() if value is not None and value is not False and value != []
        }
        _run({**given, **_given(options, values)})

    _sign(command, kinds)
    about = recipes.describe(recipe).partition("\n\n")[0].replace("\n", " ") if recipe and named else ""
    command.__doc__ = "Run a recipe on a model; the same command again resumes." + (
        f"\n\n{recipe}: {about}" if about else ""
    )
    return command


def _about_servers(own: Sequence[recipes.Option], *, graph: bool = False) -> list[recipes.Option]:
    """Options that say how the servers are asked that a recipe needs: its language model, and its graph."""
    source = (Path(__file__).parents[1] / "runs" / "servers.py").read_text(encoding="utf-8")
    asked = [*(("llm", "run") if any(option.name == "llm" for option in own) else ()), *(("graph",) if graph else ())]
    return [one for one in recipes.read_options(source, "servers") if one.name.partition("_")[0] in asked]


def _flags(panel: str, options: Sequence[recipes.Option]) -> dict[str, tuple[Any, Any]]:
    """Option -> (annotation for typer, default) of a recipe's own options, under the heading `panel` in the help.

    All but switches are text here, or of lists one text for each time the flag is given; the recipe's own annotation
    checks it later, the same way as a value from --config.
    """
    kinds: dict[str, tuple[Any, Any]] = {}
    for option in options:
        name = option.name.replace("_", "-")
        several = _is_list(option.annotation)
        help = f"{option.help} Separated by commas, or again." if several else option.help
        help = f"{help} ({_fallback(option)})".replace("(default '')", "").replace("[", r"\[").strip()
        if option.annotation == "bool":
            both = typer.Option(f"--{name}/--no-{name}", help=help, rich_help_panel=panel)
            kinds[option.name] = (Annotated[bool | None, both], None)
        else:
            flag = typer.Option(f"--{name}", help=help, metavar=_metavar(option.annotation), rich_help_panel=panel)
            kinds[option.name] = (Annotated[list[str] | None if several else str | None, flag], None)
    return kinds


def _is_list(annotation: str) -> bool:
    return any(name in annotation for name in ("Sequence", "list", "tuple"))


def _metavar(annotation: str) -> str:
    """What the help shows for a value: the choices where there are some, else the kind."""
    if annotation.startswith("Literal["):
        choices = annotation.removeprefix("Literal").partition("]")[0] + "]"
        return "|".join(map(str, ast.literal_eval(choices)))
    return "NAME" if annotation == "Any" else annotation.removeprefix(_WRITTEN)


def _given(options: Sequence[recipes.Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's own options among the flags that were given."""
    found = {option.name: (values[option.name], option.annotation) for option in options}
    return {
        name: value if isinstance(value, bool) else _value(value, annotation)
        for name, (value, annotation) in found.items() if value is not None and value != []
    }  # fmt: skip


def _sign(command: Callable[..., None], kinds: Mapping[str, tuple[Any, Any]]) -> None:
    """Give `command` the parameters that typer is to read."""
    keyword = introspection.Parameter.KEYWORD_ONLY
    command.__signature__ = introspection.Signature(  # type: ignore[attr-defined]
        [introspection.Parameter(name, keyword, annotation=kind, default=default)
         for name, (kind, default) in kinds.items()]
    )  # fmt: skip
    command.__annotations__ = {name: kind for name, (kind, _) in kinds.items()}


def _value(text: str | Sequence[str], annotation: str) -> Any:
    """A flag's text as YAML would give it, where the recipe's annotation is more than text.

    Of a list's texts, each time the flag was given, one list; what is none of them is left to the recipe to refuse.
    Where the recipe takes text for a list, that text is the list's, so that a run is on record as it always was.
    """
    if not isinstance(text, str):
        if annotation.startswith(_WRITTEN):
            parts = [_value(one, annotation.removeprefix(_WRITTEN)) if one.startswith("[") else one for one in text]
            return ",".join(part if isinstance(part, str) else ",".join(map(str, part)) for part in parts)
        parts = [_value(one, annotation) for one in text]
        wrong = [part for part in parts if not isinstance(part, list)]
        return wrong[0] if wrong else [item for part in parts for item in part]
    if annotation in ("str", "Any") or annotation.startswith("Literal"):
        return text
    if _is_list(annotation) and not text.startswith("["):
        return listed(text)
    try:
        return json.loads(text)
    except ValueError:
        return None if text.lower() == "none" and "None" in annotation else text


def _run(given: dict[str, Any]) -> None:
    for budget in given.get("budget", ()):
        Budget.parse(budget)  # before torch takes its seconds to load
    config, fresh = given.pop("config", None), given.pop("scratch_baseline", None)
    if fresh not in (None, "E", "B", "both"):
        raise InputError(f"--scratch-baseline {fresh} is not one of E, B, both")
    names = ("epochs", "lr", "cap")
    how = {name: given.pop(f"scratch_{name}") for name in names if f"scratch_{name}" in given}
    if how and not fresh:
        raise InputError(f"--scratch-{next(iter(how))} is of networks trained from scratch: give --scratch-baseline")
    needed = {"RECIPE": "recipe", "MODEL": "model", "--budget": "budget", "--data": "data", "--out": "out"}
    example = "secateur run ziplm MODEL --budget speedup=2x --data texts.txt --out small"
    given = _complete(given, config, "secateur.runs.executor", needed, example)
    dry_run = bool(given.get("dry_run"))
    from secateur.runs import executor

    if fresh:  # what can't be trained from scratch is said before the run
        from secateur.runs import scratch_baseline

        scratch_baseline.check(given["recipe"], given["data"], given, **how)
    rows = _followed(executor.results(**given))
    if fresh and not dry_run:
        held_out = given.get("held_out")
        rows = scratch_baseline.add(given["out"], given["model"], given["data"], fresh, held_out=held_out, **how)
        _console().print((Path(given["out"]) / "scratch.md").read_text("utf-8"), highlight=False, markup=False)
    if not dry_run:
        _told(rows, given["out"])


def _followed(results: Iterable[Evidence]) -> list[Evidence]:
    """The evidence of each budget, printed as it comes; of several processes by the first."""
    console, rows = _console(), []
    for row in results:
        if distributed.index() == 0:
            _print_evidence(console, row)
        rows.append(row)
    distributed.end()
    return rows


def _told(rows: Sequence[Evidence], out: str | Path) -> None:
    """Say where the results stand; a target that was missed ends with 1."""
    page = Path(out) / "report.html"
    places = {  # a cut that removed nothing is not saved
        "result": out if any(row.cut is None or not row.cut.is_noop for row in rows) else None,
        "report": page if page.is_file() else None,
    }
    lines = [f"{name}  {place}" for name, place in places.items() if place is not None]
    if lines and distributed.index() == 0:
        _console().print("", *lines, sep="\n", highlight=False)
    if any(row.verdict != "met" for row in rows):
        raise typer.Exit(1)


def prune(
    typed: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="file.py:function, or package.module:function, that builds any network.")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="How much may stay: channels=50%, params=, bytes=, flops=. Give it again for one more.",
                     metavar="MEASURE=AMOUNT"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory, where the result will stand.")] = None,
    config: Annotated[Path | None, typer.Option(help=_CONFIG)] = None,
    data: Annotated[str | None, typer.Option(help="Examples, for scores that look at them, and for quality.")] = None,
    held_out: Annotated[str | None, typer.Option(help=_HELD_OUT)] = None,
    text: _Text = "text",
    label: _Label = "label",
    sizes: _Sizes = None,
    shape: Annotated[str | None, typer.Option("--input", help=_SHAPE)] = None,
    score: Annotated[str, typer.Option(help=_SCORES)] = "magnitude",
    scope: Annotated[str, typer.Option(help=_SCOPE, metavar=_SCOPES)] = "local",
    normalise: Annotated[str, typer.Option(help=_NORMALISE, metavar="l2|max|mean|zscore|rank")] = "",
    multiple: Annotated[int, typer.Option(help="Kept channels are multiples of this.")] = 1,
    protect: Annotated[list[str] | None, typer.Option(help=_PROTECT, metavar="NAME")] = None,
    offsets: Annotated[
        bool, typer.Option("--offsets", help="Fold the constants that channels leave behind into what reads them.")
    ] = False,
    looks: Annotated[int, typer.Option(help="Examples that a score looks at.")] = 512,
    batch: Annotated[int, typer.Option(help="Examples at a time, also while measuring.")] = 32,
    threads: Annotated[int | None, typer.Option(help="Of torch, also while measuring.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be cut and saved; write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where --out holds another run.")] = False,
) -> None:  # fmt: skip
    """Cut any network to a budget, without training; recipes (run) also win back what was lost."""
    for one in budget or ():
        Budget.parse(one)  # before torch takes its seconds to load
    given = _typed(typed)
    if "shape" in given:
        given["inputs"] = given.pop("shape")
    needed = {"MODEL": "model", "--budget": "budget", "--out": "out"}
    example = "secateur prune net.py:build --budget channels=50% --out small"
    given = _complete(given, config, "secateur.runs.cutting", needed, example)
    from secateur.runs import cutting, executor

    rows = _followed(executor.results(cutting.prune, **{"data": None, **given}))
    if not given.get("dry_run"):
        _told(rows, given["out"])


# ------------------------------------------------------------------------------------------------------ distilling


def distill(
    typed: typer.Context,
    student: Annotated[
        str | None, typer.Argument(help="A model folder or Hub id, or file.py:function for any network.")
    ] = None,
    teachers: Annotated[
        list[str] | None,
        typer.Option("--from", help="The teacher. Again for one more: the mean of both, or PATH=0.7.", metavar="MODEL"),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Texts, or for a network examples; a part is held out.")] = None,
    held_out: Annotated[str | None, typer.Option(help=_HELD_OUT)] = None,
    text: _Text = "text",
    label: _Label = "label",
    out: Annotated[Path | None, typer.Option(help="The run directory, where the result will stand.")] = None,
    config: Annotated[Path | None, typer.Option(help=_CONFIG)] = None,
    choice: Annotated[str, typer.Option(help="Of several teachers the best per sample: by label or confidence.")] = "",
    assistants: Annotated[
        list[str] | None,
        typer.Option("--assistant", help="A model between: it learns first, then teaches.", metavar="MODEL"),
    ] = None,
    weights: Annotated[str, typer.Option(help="Of a network: a .safetensors file, or a cut one's folder.")] = "",
    server: Annotated[
        str, typer.Option(help="An OpenAI-compatible server that has the teacher, named as there.", metavar="URL")
    ] = "",
    align: Annotated[
        bool,
        typer.Option(
            "--align", help="Teachers read with tokenizers of their own: tokens of equal characters, or whole texts."
        ),
    ] = False,
    steps: Annotated[int, typer.Option(help="Of training, for each assistant too.")] = 1000,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-4,
    batch: Annotated[int, typer.Option(help="Sequences or examples per step.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens per sequence.")] = 128,
    temperature: Annotated[float, typer.Option(help="Of both predictions.")] = 1.0,
    direction: Annotated[str, typer.Option(help="forward or reverse KL, js, mse or cosine.")] = "forward",
    task: Annotated[float, typer.Option(help="Weight of cross-entropy beside it.")] = 0.0,
    skew: Annotated[float, typer.Option(help="Of KL: share of one prediction in what it is compared with.")] = 0.0,
    buckets: Annotated[
        str, typer.Option(help="Forward KL of K tokens one by one, of the others in N buckets: 64,8.", metavar="K,N")
    ] = "",
    hidden: Annotated[bool, typer.Option("--hidden", help="Bring hidden states near, too.")] = False,
    match: Annotated[
        list[str] | None,
        typer.Option(
            help="Modules whose features are brought near: layer3, or blocks.{i}.mlp=layers.{i}.ffn. Again for more.",
            metavar="PATTERN[=PATTERN]",
        ),
    ] = None,
    match_index: Annotated[
        list[str] | None,
        typer.Option(help="For {i}: the teacher's number for each of the student's.", metavar="1,3,..."),
    ] = None,
    match_loss: Annotated[
        str,
        typer.Option(
            help="How features are compared.",
            metavar="mse|cosine|unit|unit-l1|normalised|attention|channel-wise|relational|contrastive",
        ),
    ] = "mse",
    match_weight: Annotated[
        list[str] | None, typer.Option(help="Of that loss: one, or one for each module.", metavar="NUMBER,...")
    ] = None,
    match_balance: Annotated[
        bool, typer.Option("--match-balance", help="Make that loss as large as the predictions', then weigh it.")
    ] = False,
    warm_up: Annotated[
        list[str] | None,
        typer.Option(
            help="Parts of the loss that grow from 0: task, hidden, match; over a share of the steps, or so many.",
            metavar="match=0.1,...",
        ),
    ] = None,
    cache: Annotated[
        str,
        typer.Option(help="Ask the teacher once: keep so many tokens at each place, or all it says.", metavar="K|all"),
    ] = "0",
    cache_at: Annotated[
        str, typer.Option(help="Folder of that cache, where other students find it.", metavar="DIR")
    ] = "",
    on_policy: Annotated[float, typer.Option(help="Share of the batches that the student writes itself.")] = 0.0,
    prompt: Annotated[int, typer.Option(help="Tokens of a text that it then writes on from.")] = 16,
    bits: Annotated[int, typer.Option(help="8 or 4: round weights in training, keep zeros, save integers.")] = 0,
    training: Annotated[
        list[str] | None, typer.Option(help="More settings of training: accumulate=4,precision=bf16.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    device: Annotated[str | None, typer.Option(help="Where the models are held: cpu (the default), cuda, ...")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be trained, and how long.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where --out holds a run.")] = False,
) -> None:
    """Teach a model to answer as another does; the same command again resumes."""
    given = _typed(typed)
    if teachers:
        given["teachers"], given["shares"] = _shared(teachers)
    for name in ("match_index", "match_weight", "warm_up", "training"):  # given again, they go on
        if name in given:
            given[name] = ",".join(given[name])
    for name, kind in (("match_index", int), ("match_weight", float), ("buckets", int)):
        if name in given:
            given[name] = _numbers(given[name], kind, name.replace("_", "-"))
    if given.get("cache", "all") != "all":
        given["cache"] = _kept(given["cache"])
    needed = {"STUDENT": "student", "--from": "teachers", "--data": "data", "--out": "out"}
    example = "secateur distill STUDENT --from TEACHER --data texts.txt --out taught"
    given = _complete(given, config, "secateur.runs.distilling", needed, example)
    from secateur.runs import distilling

    row = distilling.distill(**given)
    console = _console()
    _print_evidence(console, row)
    if row.verdict != "dry run":
        for note in row.settings.get("notes", ()):
            console.print(f"note: {note}", highlight=False, markup=False)
        if why := row.settings.get("not_measured"):
            console.print(f"note: quality: {why}", highlight=False, markup=False)
        console.print(f"\nresult  {given['out']}\nreport  {Path(given['out']) / 'report.html'}", highlight=False)
        if not row.verdict.startswith("met"):
            raise typer.Exit(1)


def _typed(given: typer.Context) -> dict[str, Any]:
    """The values of a command that were typed; what was not stays at the function's own default."""
    sources = {name: given.get_parameter_source(name) for name in given.params if name != "config"}
    return {name: given.params[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def _complete(
    given: dict[str, Any], config: Path | None, module: str, needed: Mapping[str, str], example: str
) -> dict[str, Any]:
    """`given`, and what else the file `config` says; refused while something that is `needed` stands nowhere.

    It is `configured` of `module` that reads the file: without one, nothing slow is loaded.
    """
    if config is not None:
        given = importlib.import_module(module).configured(config, given)
    if given.get("dry_run"):
        given.setdefault("out", "")
    if missing := [flag for flag, name in needed.items() if name not in given]:
        raise InputError(f"{example.split()[1]} needs {', '.join(missing)}: say for example {example}")
    return given


def _numbers(text: str, kind: type[int] | type[float], flag: str) -> list[int] | list[float]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--{flag} {text}: give numbers, separated by commas") from error


def _kept(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"--cache {text}: give a number of tokens, or all") from error


def _shared(given: Sequence[str]) -> tuple[list[str], list[float] | None]:
    """Teachers and their shares in the mean: "path=0.7"; all have one, or none has."""
    names, shares = list[str](), list[float | None]()
    for text in given:
        name, equals, number = text.rpartition("=")
        try:
            shares.append(float(number) if equals else None)
            names.append(name if equals else text)
        except ValueError:  # an equals sign of the path's own
            shares.append(None)
            names.append(text)
    known = [share for share in shares if share is not None]
    if known and len(known) < len(shares):
        raise InputError(f"--from {names[shares.index(None)]} has no share, and another has: write MODEL=0.3 for each")
    return names, known or None


# ----------------------------------------------------------------------------------------------- what a model reads


def _flag_of(given: Sequence[str], flag: str) -> str | None:
    """The value of a flag, before the command line is read as a whole."""
    for word, following in zip(given, [*given[1:], None], strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def _reader_named(given: Sequence[str]) -> str | None:
    """The recipe that the command line of `prune-context` names, or else the file that --config names."""
    if given[:1] != ["prune-context"]:
        return None
    config = _flag_of(given, "--config")
    return _flag_of(given, "--recipe") or (_configured_recipe(config, "recipe") if config else None)


def _prune_context_command(recipe: str | None) -> Callable[..., None]:
    """The `prune-context` command, with the flags of `recipe` where one is named."""
    named = recipe is not None and recipes.cards().get(recipe, {}).get("family") == "context"
    own = [o for o in recipes.signature(recipe or "") if o.name not in _SHARED] if named else []
    options = [
        *own,
        *(_about_servers(own, graph=recipes.subject(recipe) == "KnowledgeGraph") if recipe and named else ()),
    ]
    files = (
        "HTML or text files, read in this order; - is the standard input. For recipes on a graph: its file, folder or "
        "the address of a SPARQL endpoint."
    )
    kinds: dict[str, tuple[Any, Any]] = {
        "files": (Annotated[list[str] | None, typer.Argument(help=files, metavar="[FILE]...")], None),
    }

    def flag(name: str, kind: Any, help: str, default: Any = None, to: str = "", **more: Any) -> None:
        kinds[to or name] = (Annotated[kind, typer.Option(f"--{name}", help=help, **more)], default)

    flag("recipe", str | None, "Which recipe: `secateur list` shows those of the family context.")
    flag("question", str | None, "What the documents are to answer.")
    flag("budget", str | None, "How much may stay: tokens=2048, words=1000, tokens=20%.", metavar="MEASURE=AMOUNT")
    source = (
        "A .jsonl file with question and html, text or passages in each line, or the question alone where a FILE is "
        "the graph; or a folder of pages; - is the standard input."
    )
    flag("in", str | None, source, to="in_")
    flag(
        "out", str | None,
        "Where the result goes: text for files, .jsonl for --in; the standard output without it. Beside it OUT.run.yaml"
        " says what was run.",
    )  # fmt: skip
    flag("config", Path | None, "A YAML file with the same keys, such as an OUT.run.yaml; flags win over it.")
    flag(
        "trace", bool, "Say for each block what became of it: in --in's lines, or as JSON on the standard error.", False
    )
    flag("page", str | None, "Write a page that shows what was cut, greyed out, with each block's score.")
    flag("strict", bool, "Stop at the first line of --in that can't be pruned.", False)
    flag("overwrite", bool, "Write --out anew.", False)
    flag("processes", int | None, "How many work at once on --in; one for each core unless given.")
    flag(
        "dry-run", bool, "Say what would be cut and what it would cost, by the first 8 lines; write nothing.", False,
        to="dry_run",
    )  # fmt: skip
    kinds |= _flags(f"Options of {recipe}", own)
    kinds |= _flags("Servers", options[len(own) :])

    def command(**values: Any) -> None:
        named = {option.name for option in options}
        told = {name.rstrip("_"): values[name] for name in values if name not in named and name != "config"}
        given = {name: value for name, value in told.items() if value not in (None, False, [])}
        chosen = _given(options, values)
        if values["config"] is not None:
            from secateur.runs import records

            given, chosen = records.settings(values["config"], {**given, **chosen})
        _prune_context({**dict.fromkeys(told), **given}, chosen)

    _sign(command, kinds)
    command.__doc__ = "Cut pages, passages or a graph to what answers a question, within a budget of tokens."
    return command


def _prune_context(given: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    out = Path(given["out"]) if given["out"] else None
    missing = [name for name in ("recipe", "budget") if not given[name]]
    if not given["in"]:
        missing += [] if given["files"] else ["a FILE or --in"]
        missing += [] if given["question"] else ["question"]
    if missing:
        flags = ", ".join(name if " " in name else f"--{name}" for name in missing)
        example = 'secateur prune-context page.html --recipe htmlrag --budget tokens=2048 --question "..."'
        raise InputError(f"prune-context needs {flags}: say for example {example}")
    Budget.parse(given["budget"])
    if given["in"] and given["page"]:
        raise InputError("--in takes no --page: it works line by line and writes --out")
    if given["in"] and not out and not given["dry_run"]:
        raise InputError("--in needs --out, a .jsonl file: each line of the one gives a line of the other")
    from secateur.clients.chat import SpentWarning
    from secateur.runs import context, context_files
    from secateur.runs.backends.documents import of_document_recipe

    reading, named = of_document_recipe(given["recipe"]), list(given["files"] or ())
    if not reading.brings_documents and len(named) != 1:
        raise InputError(
            f"{given['recipe']} reads one {reading.noun}: name its file, folder or address, and nothing else"
        )
    if reading.brings_documents and given["in"] and named:
        raise InputError("--in takes no files beside it: each of its lines holds what is to be read")
    asked = {"question": given["question"] or "", "graph": "" if reading.brings_documents else named[0], **options}
    if given["in"] and given["dry_run"]:
        _print_estimate(context_files.estimate_file(given["recipe"], given["in"], given["budget"], **asked))
        return
    if given["in"]:
        with _noted(SpentWarning):
            lines, failed = context_files.prune_file(
                given["recipe"], given["in"], given["out"], given["budget"], trace=bool(given["trace"]),
                strict=bool(given["strict"]), overwrite=bool(given["overwrite"]), processes=given["processes"], **asked,
            )  # fmt: skip
        print(f"{lines} lines, {failed} of them with an error: {out}", file=sys.stderr)
        if failed:
            raise typer.Exit(1)
        return
    if out and out.exists() and not given["overwrite"] and not given["dry_run"]:
        raise InputError(f"{out} is there already: give another name, or --overwrite")
    documents = (
        [sys.stdin.buffer.read() if name == "-" else Path(name) for name in named]
        if reading.brings_documents
        else named[0]
    )
    cut = (given["recipe"], documents, given["question"], given["budget"])
    if given["dry_run"]:
        _print_estimate(context.estimate_context(*cut, **options))
        return
    found = context.prune_context(*cut, **options)
    if given["page"]:
        found.save(given["page"])
    if given["trace"]:
        both = {"told": dict(found.told), "trace": found.trace} if found.told else found.trace
        print(json.dumps(both, ensure_ascii=False, indent=1), file=sys.stderr)
    if out:
        found.write(out)
        context.record(out, *cut, found, files=named, **options)
    else:
        print(found.text)
    for note in found.told.get("notes", ()):
        print(f"note: {note}", file=sys.stderr)
    if found.told.get("answer"):
        print(f"answer: {found.told['answer']}", file=sys.stderr)
    told = ", ".join(f"{name} {found.before[name]:.0f} -> {found.after[name]:.0f}" for name in found.after)
    print(told, file=sys.stderr)


@contextmanager
def _noted(kind: type[Warning]) -> Iterator[None]:
    """Warnings of this kind as notes, one line each, once all is done."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", kind)
        yield
    for one in told:
        if issubclass(one.category, kind):
            print(f"note: {one.message}", file=sys.stderr)
        else:
            warnings.showwarning(one.message, one.category, one.filename, one.lineno)


def _print_estimate(found: Estimate) -> None:
    from secateur.reports import evidence

    console = _console()
    console.print(evidence.rich_table(found.rows(), title=found.title))
    if found.failed:
        console.print(f"note: {found.failed} of {found.tried} lines would have an error", highlight=False, markup=False)
    console.print("verdict: dry run", highlight=False, markup=False)


def _train_pruner_command(recipe: str | None) -> Callable[..., None]:
    """The `train-pruner` command, with the flags of `recipe` where one is named."""
    own = recipes.training(recipe) if recipe in recipes.cards() else []
    options = [*own, *(one for one in _about_servers(own) if one.name.startswith("llm_"))]
    data = "A .jsonl file with question, html, text or passages, and answers in each line; `secateur show` says more."
    model = "Folder or Hub id of the model to train; it stays as it is."
    out = "The run directory, where the model will stand."
    kinds: dict[str, tuple[Any, Any]] = {
        "recipe": (Annotated[str | None, typer.Argument(help="A recipe of the family context.")], None),
        "model": (Annotated[str | None, typer.Argument(help=model)], None),
        "data": (Annotated[Path | None, typer.Option("--data", help=data)], None),
        "out": (Annotated[Path | None, typer.Option("--out", help=out)], None),
        "config": (Annotated[Path | None, typer.Option("--config", help=_CONFIG)], None),
        "overwrite": (Annotated[bool, typer.Option("--overwrite", help="Start anew where --out holds a run.")], False),
        **_flags(f"Options of {recipe}", own),
        **_flags("Servers", options[len(own) :]),
    }

    def command(**values: Any) -> None:
        if values["recipe"] and not recipes.training(values["recipe"]):
            raise InputError(f"{values['recipe']} trains no model: `secateur run` runs it")
        needed = {"RECIPE": "recipe", "MODEL": "model", "--data": "data", "--out": "out"}
        given = {name: values[name] for name in (*needed.values(), "overwrite") if values[name]}
        example = "secateur train-pruner provence MODEL --data passages.jsonl --out pruner"
        given |= _given(options, values)
        given = _complete(given, values["config"], "secateur.runs.pruner_training", needed, example)
        from secateur.runs import pruner_training

        made = pruner_training.train_pruner(**given)
        told = json.loads((Path(given["out"]) / "training.json").read_text(encoding="utf-8"))
        print(f"{made.steps} steps on {made.tokens} tokens: {given['out']}", *told["notes"], sep="\n", file=sys.stderr)

    _sign(command, kinds)
    command.__doc__ = "Train the model with which a recipe prunes what a model reads; the same command again resumes."
    return command


def _print_evidence(console: Console, row: Evidence) -> None:
    from secateur.reports import evidence

    console.print(evidence.rich_table(evidence.table(row), title=f"{row.recipe}, {row.target}"))
    if row.cut:
        console.print(f"cut: {_cut(row.cut.removed)}", highlight=False, markup=False)
        for note in row.cut.notes:
            console.print(f"note: {note}", highlight=False, markup=False)
    console.print(f"verdict: {row.verdict}", highlight=False, markup=False)


def _cut(removed: Mapping[str, tuple[int, int]]) -> str:
    """Per kind of unit: how many of how many went."""
    total: dict[str, tuple[int, int]] = {}
    for site, (gone, count) in removed.items():
        kind = site.rsplit(".", 1)[-1]
        before = total.get(kind, (0, 0))
        total[kind] = (before[0] + gone, before[1] + count)
    return ", ".join(f"{gone} of {count} {kind}" for kind, (gone, count) in total.items() if gone) or "nothing"


# ------------------------------------------------------------------------------------------------- a training set


def prune_data(
    typed: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            help="Texts or a table (.txt .jsonl .parquet .csv), an .npz, a folder, hub:owner/name, file.py:function."
        ),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="How much may stay: examples=30%, words=1m, ... Give it again for one more index.",
                     metavar="MEASURE=AMOUNT"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory, where the index files will stand.")] = None,
    config: Annotated[Path | None, typer.Option(help=_CONFIG)] = None,
    score: Annotated[
        str,
        typer.Option(
            help="random, length, el2n, grand, forgetting, memorisation, moderate, herding, or file.py:function."
        ),
    ] = "random",
    model: Annotated[
        str | None, typer.Option(help="For scores from el2n on: a classifier, net.py:build, or a folder for texts.")
    ] = None,
    balanced: Annotated[
        bool | None,
        typer.Option("--balanced/--no-balanced", help="Keep the same share of each class; so where there are classes."),
    ] = None,
    deduplicate: Annotated[
        bool, typer.Option("--deduplicate", help="First drop examples that repeat an earlier one.")
    ] = False,
    normalised: Annotated[
        bool, typer.Option("--normalised", help="Texts of equal words repeat one another, too.")
    ] = False,
    text: _Text = "text",
    label: _Label = "label",
    tokenizer: Annotated[str | None, typer.Option(help="Whose tokens are counted: a folder or Hub id.")] = None,
    runs: Annotated[int, typer.Option(help="Trainings that a score is averaged over.")] = 3,
    epochs: Annotated[float, typer.Option(help="Of each of them; 0 takes the model as it is.")] = 10.0,
    lr: Annotated[float | None, typer.Option(help="Their peak learning rate.")] = None,
    batch: Annotated[int, typer.Option(help="Examples per step.")] = 32,
    length: Annotated[int, typer.Option(help="Tokens of a text that a model reads.")] = 128,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    ray: Annotated[
        bool, typer.Option("--ray", help="Pass over texts with Ray Data: on all cores, or the cluster at RAY_ADDRESS.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would stay; write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where --out holds another run.")] = False,
) -> None:  # fmt: skip
    """Cut a training set to the examples that are worth most; the same command again resumes, other budgets too."""
    for one in budget or ():
        Budget.parse(one)  # before torch takes its seconds to load
    given = _typed(typed)
    if given.pop("normalised", False) | given.pop("deduplicate", False):
        given["deduplicate"] = "normalised" if normalised else "exact"
    needed = {"DATA": "data", "--budget": "budget", "--out": "out"}
    example = "secateur prune-data texts.txt --budget examples=30% --out kept, or --dry-run"
    given = _complete(given, config, "secateur.runs.data", needed, example)
    from secateur.reports import display
    from secateur.runs import data as training_set

    found = training_set.prune_data(**given)
    for note in dict.fromkeys(note for result in found for note in result.notes):
        print(f"note: {note}")
    for result in found:
        whole, after = result.cut.before, result.cut.after
        unit = {m: "" if display.measure(m).kind == "bytes" else f" {m}" for m in whole}
        kept = [f"{display.number(m, after[m])} of {display.number(m, whole[m])}{unit[m]}" for m in whole]
        gone, classes = result.cut.removed.get("classes", (0, 0))
        kept += [f"{classes - gone} of {classes} classes"] if classes else []
        place = "" if given.get("dry_run") else f": {Path(given['out']) / result.name / 'index.npz'}"
        print(f"{result.name}  {', '.join(kept)}{place}")
    if any(result.cut.is_noop for result in found):
        print("note: a budget that all examples fit in keeps them all", file=sys.stderr)
        raise typer.Exit(1)


# --------------------------------------------------------------------------------------------------------- studies


def _study_command(study: str | None) -> Callable[..., None]:
    """The `study` command, with the flags of `study` where one is named."""
    from secateur import studies

    named = study is not None and study in studies.cards()
    options = studies.options(study) if study and named else []
    kinds: dict[str, tuple[Any, Any]] = {
        "study": (Annotated[str | None, typer.Argument(help="A study's name; without one, all are listed.")], None),
        "model": (Annotated[str | None, typer.Argument(help="file.py:function for any network.")], None),
    }

    def flag(name: str, kind: Any, help: str, default: Any = None) -> None:
        kinds[name.replace("-", "_")] = (Annotated[kind, typer.Option(f"--{name}", help=help)], default)

    flag("data", str | None, "Examples: an .npz file, a folder of images, file.py:function.")
    flag("out", Path | None, "The folder, where study.json and study.html will stand.")
    flag("config", Path | None, _CONFIG)
    flag("dry-run", bool, "Say how many trainings it will be; train and write nothing.", False)
    flag("overwrite", bool, "Start anew where --out holds another study.", False)
    kinds |= _flags(f"Options of {study}", options)

    def command(**values: Any) -> None:
        if values["study"] is None and values["config"] is None:
            cards = studies.cards()
            named, over = max(map(len, cards)), max(len(card["recipe"]) for card in cards.values())
            for name, card in cards.items():
                print(f"{name:<{named}}  {card['recipe'] or '-':<{over}}  {card['title']}")
            return
        if values["study"]:
            studies.options(values["study"])  # an unknown study is refused before its missing arguments are
        shared = ("study", "model", "data", "out", "dry_run", "overwrite")
        given = {name: values[name] for name in shared if values[name]} | _given(options, values)
        example = "secateur study curve net.py:build --data digits.npz --out curves"
        needed = {"STUDY": "study", "--out": "out"}
        given = _complete(given, values["config"], "secateur.studies.study_inputs", needed, example)
        from secateur.reports import evidence
        from secateur.studies import study_inputs

        found, console = study_inputs.study(**given), _console()
        for table in found.tables:
            console.print(evidence.rich_table(table.rows, title=table.title))
        console.print(*found.notes, found.headline, sep="\n", highlight=False, markup=False)
        if not given.get("dry_run"):
            places = (f"{name}  {Path(given['out']) / f'study.{name}'}" for name in ("json", "html"))
            console.print("", *places, sep="\n", highlight=False)

    _sign(command, kinds)
    command.__doc__ = "Answer a question over many runs of a recipe; the same command again resumes."
    if study and named:
        command.__doc__ += f"\n\n{study}: {studies.cards()[study]['title']}."
    return command


# ----------------------------------------------------------------------------------------- the other commands


def inspect(
    model: Annotated[str, typer.Argument(help="A model folder or Hub id, or file.py:function for any network.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    batch: Annotated[int, typer.Option(help="Sequences, for FLOPs and the KV cache.")] = 1,
    length: Annotated[int, typer.Option(help="Tokens per sequence.")] = 128,
    shape: Annotated[str | None, typer.Option("--input", help=_SHAPE)] = None,
    budget: Annotated[str | None, typer.Option(help="What may stay of a network, channels=50% say.")] = None,
    score: Annotated[str | None, typer.Option(help="Of a network, what goes first: " + _SCORES)] = None,
    scope: Annotated[str | None, typer.Option(help=_SCOPE, metavar=_SCOPES)] = None,
    normalise: Annotated[str | None, typer.Option(help=_NORMALISE, metavar="l2|max|mean|zscore|rank")] = None,
    multiple: Annotated[int | None, typer.Option(help="A network's kept channels are multiples of this.")] = None,
    protect: Annotated[list[str] | None, typer.Option(help=_PROTECT, metavar="NAME")] = None,
    seed: Annotated[int | None, typer.Option(help="Of random scores.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw a network, and what would go: an .svg or .html.")] = None,
) -> None:
    """What could go in a model, and what that would save."""
    from secateur.reports import display, evidence
    from secateur.runs import executor

    given = {"inputs": shape, "budget": budget, "score": score, "scope": scope, "normalise": normalise,
             "multiple": multiple, "protect": protect, "seed": seed, "picture": picture}  # fmt: skip
    asked = {name: value for name, value in given.items() if value is not None}
    found = executor.inspect(model, batch=batch, length=length, **asked)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    if found["kind"] == "network":
        _print_network(found, picture)
        return
    costs = found["cost"]
    rows = [["Units", "Sites", "Count", *(display.measure(name).label for name in costs)]]
    for row in found["axes"]:
        shares = [f"{row['share'].get(name, 0.0):.1%}" for name in costs]
        rows.append([row["kind"], str(row["sites"]), str(row["units"]), *shares])
    rows.append(["whole model", "", "", *(display.number(name, cost) for name, cost in costs.items())])
    _console().print(
        evidence.rich_table(rows, title=f"{found['model']} ({found['kind']}): what all units of a kind cost")
    )


def _print_network(found: Mapping[str, Any], picture: Path | None) -> None:
    """Sites with their members and shares, what stays and why, and the costs."""
    from secateur.reports import display, evidence

    kept, after = found.get("kept", {}), found.get("after")
    narrowed = after and "segments" not in after
    rows = [["Site", "Units", "Channels each", *(["Kept"] if narrowed else []), "Params"]]
    for site in found["sites"]:
        stay = [str(kept.get(site["name"], site["units"]))] if narrowed else []
        share = f"{site['share'].get('params', 0.0):.1%}"
        rows.append([site["name"], str(site["units"]), str(site["width"]), *stay, share])
    title = f"{found['model']}: what goes together" + (f", at {found['budget']}" if after else "")
    console = _console()
    console.print(evidence.rich_table(rows, title=title))
    for site in found["sites"]:
        members = ", ".join(site["members"])
        console.print(f"{site['name']}: {members}", highlight=False, markup=False)
    for row in found["stays"]:
        more = f" and {len(row['axes']) - 4} more" if len(row["axes"]) > 4 else ""
        console.print(f"stays: {', '.join(row['axes'][:4])}{more}: {row['reason']}", highlight=False, markup=False)
    for one in found["segments"]:
        if one["goes"] or not one["stays"]:
            share = f"{one['params'] / found['cost']['params']:.1%} of the parameters"
            what = f"goes ({one['goes']})" if one["goes"] else "may be erased whole"
            console.print(f"{what}: {one['name']}, {share}", highlight=False, markup=False)
    for name, cost in found["cost"].items():
        number = display.number(name, cost) + (f" -> {display.number(name, after[name])}" if after else "")
        console.print(f"{display.measure(name).label}: {number}", highlight=False, markup=False)
    if picture is not None:
        console.print(f"picture: {picture}", highlight=False, markup=False)


def measure(
    model: Annotated[str, typer.Argument(help="A model folder or Hub id.")],
    against: Annotated[
        list[str] | None,
        typer.Option(help="Another, usually the original, to compare with; teachers, again each.", metavar="MODEL"),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Texts to measure quality on.")] = None,
    text: _Text = "text",
    label: _Label = "label",
    sizes: _Sizes = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(help="lm-eval tasks to measure quality on, separated by commas, or again.", metavar="TASK,..."),
    ] = None,
    task_folder: Annotated[Path | None, typer.Option(help="A folder of lm-eval task files of your own.")] = None,
    limit: Annotated[int | None, typer.Option(help="Documents per task; all if not given.")] = None,
    batch: Annotated[int | None, typer.Option(help="Rows per batch; 32 if not given.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens per sequence; 64 if not given.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to measure: cpu (the default), cuda, ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Measure size, time, memory and quality of a model, alone or against others."""
    from secateur.runs import measuring

    found = measuring.measure(
        model, against, data, text=text, label=label, sizes=sizes, tasks=listed(",".join(tasks or ())),
        task_folder=task_folder, limit=limit, batch=batch, length=length, threads=threads, device=device,
    )  # fmt: skip
    if as_json:
        from dataclasses import asdict

        print(json.dumps({part: {n: asdict(f) for n, f in row.items()} for part, row in found.items()}, indent=1))
        return
    from secateur.reports import display, evidence
    from secateur.runs import backends

    names = display.order(name for part in found.values() for name in part)
    rows = [["Measure", *found]]
    rows += [[display.measure(n).label, *(display.text(n, part.get(n)) for part in found.values())] for n in names]
    usual = backends.of_source(next(iter(against or ()), model))
    length = length or usual.length
    title = f"batch {batch or usual.batch}" + (f" x {length} tokens" if length else "")
    _console().print(evidence.rich_table(rows, title=title))


def report(run_dir: Annotated[Path, typer.Argument(help="The --out folder of a run.")]) -> None:
    """Write a run's report.html anew from its evidence."""
    from secateur.runs import executor

    print(executor.report(run_dir))


def export(
    folder: Annotated[Path, typer.Argument(help="The folder of a model, usually a result.")],
    to: Annotated[str, typer.Option(help="onnx, decilm (for vLLM), packed, packed-int8, masks, int8 or int4.")],
    out: Annotated[Path | None, typer.Option(help="Where to; FOLDER/onnx and so on if not given.")] = None,
    data: Annotated[str | None, typer.Option(help="Texts to measure the quality of integers on.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Read the model block by block from the disk.")] = False,
) -> None:
    """Write a model in another form, checked against the original's output."""
    from secateur.runs import exporting

    place, notes = exporting.export(folder, to, out, data=data, stream=stream)
    for note in notes:
        print(f"note: {note}")
    print(place)


def _console() -> Console:
    from rich.console import Console

    return Console()
