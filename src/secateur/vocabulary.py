"""The nouns of secateur: Units, Budget, Selection, Cut, Training, Recovery, Evidence.

Find the units, score them, select under a budget, cut, recover, measure. These frozen values are all that
travels between the floors. Arrays inside them may be NumPy arrays or torch tensors; nothing here imports
either, so this module costs nothing to load.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from decimal import ROUND_CEILING, Decimal
from typing import Any, NamedTuple, Protocol, overload, runtime_checkable

from secateur.errors import BudgetError, InputError

__all__ = [
    "Array",
    "Budget",
    "Cut",
    "Evidence",
    "Figure",
    "Limit",
    "Notes",
    "Pattern",
    "Recovery",
    "Result",
    "Scores",
    "Selection",
    "Site",
    "Subject",
    "Term",
    "Training",
    "Units",
    "html_table",
    "parse_list",
    "write_enough",
]

Array = Any
"""A one-dimensional NumPy array or torch tensor."""

Scores = Mapping[str, Array]
"""Site name -> array [count]: how much each unit is worth keeping. Higher means keep, everywhere."""


def parse_list(given: str | Sequence[object]) -> list[str]:
    """What commas separate in a text, or what a list has, each as text without spaces around it; no empty ones."""
    parts = given.split(",") if isinstance(given, str) else map(str, given)
    return [part.strip() for part in parts if part.strip()]


# ----------------------------------------------------------------------------------------------------- budget

_SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_UNIT_TABLES = {"bytes": _BYTES, "memory": _BYTES, "served_memory": _BYTES, "kv_cache": _BYTES, "latency": _SECONDS}
_NAMES = {"speed": "speedup", "time": "latency", "parameters": "params", "size": "bytes", "examples": "examples"}
_NUMBER = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z%]*)")
_EXAMPLE = "write for example speedup=2x, params=50%, latency=12ms, tokens=4096 or pattern=2:4"


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `value` of one measure may stay: a share of the original if `relative`, else absolute.

    Units: seconds for latency, bytes for bytes, memory and kv_cache, plain counts otherwise.
    """

    measure: str
    value: float
    relative: bool = False

    def absolute(self, whole: float) -> float:
        """The limit in the measure's own unit, given what the whole subject costs."""
        if not self.relative:
            return self.value
        value = self.value * whole
        # A share written as a fraction must not lose a whole unit to rounding: 1/103 of 103 tokens is 1.
        return float(round(value)) if math.isclose(value, round(value), rel_tol=1e-9) else value

    def __str__(self) -> str:
        """The shortest text that `Budget.parse` reads as exactly this limit: other limits never print alike."""
        name, value = self.measure, self.value
        if self.relative:
            factor = _decimal(1.0 / value, lambda number: 1.0 / number == value) if name == "latency" else ""
            percent = _decimal(value * 100.0, lambda number: number / 100.0 == value)
            return f"speedup={factor}x" if factor else f"{name}={percent}%" if percent else f"{name}={value!r}"
        if name == "latency":
            milli = _decimal(value * 1e3, lambda number: number * 1e-3 == value)
            return f"latency={milli}ms" if milli else f"latency={value!r}s"
        return f"{name}={_plain(value)}{'B' if _UNIT_TABLES.get(name) is _BYTES else ''}"

    def brief(self) -> str:
        """For people: four digits, or a whole number where that has more."""
        name, value = self.measure, self.value
        if self.relative:
            return f"speedup={_brief(1 / value)}x" if name == "latency" else f"{name}={_brief(100 * value)}%"
        if name == "latency":
            return f"latency={_brief(1e3 * value)}ms"
        return f"{name}={_brief(value)}{'B' if _UNIT_TABLES.get(name) is _BYTES else ''}"


def _brief(number: float) -> str:
    return f"{number:.4g}" if abs(number) < 1000 else f"{number:.0f}"


def write_enough(number: float) -> str:
    """A few digits of `number`, rounded up: what a refusal says can be met is not refused when it is asked for.

    Whole numbers from a thousand on, else four digits; `Budget.parse` reads the text, of shares and of amounts.
    """
    exact = Decimal(number)
    step = Decimal(1).scaleb(min(0, exact.adjusted() - 3)) if number else Decimal(1)
    return f"{exact.quantize(step, ROUND_CEILING).normalize():f}"


def _decimal(about: float, exact: Callable[[float], bool]) -> str:
    """The shortest decimal near `about` that is `exact`; empty if it would take more than 12 digits."""
    numbers = (float(f"{about:.{digits}g}") for digits in range(1, 13))
    return next((_plain(number) for number in numbers if exact(number)), "")


def _plain(number: float) -> str:
    return repr(number).removesuffix(".0")


@dataclass(frozen=True, slots=True)
class Pattern:
    """Keep `n` of every `m` consecutive weights (2:4 and its kin)."""

    n: int
    m: int

    def __str__(self) -> str:
        return f"pattern={self.n}:{self.m}"


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may stay: limits in one or more measures, and perhaps an n:m pattern.

    >>> str(Budget.parse("speedup=2x"))
    'speedup=2x'
    >>> Budget.parse("params=50%").limits[0]
    Limit(measure='params', value=0.5, relative=True)
    """

    limits: tuple[Limit, ...] = ()
    pattern: Pattern | None = None

    @classmethod
    def parse(cls, text: str | Budget) -> Budget:
        """Read `measure=amount[,measure=amount...]`.

        A plain number below 1 is a share, one above it an amount; 1 is one unit, and 100% or 1.0 all of them.
        Raises `BudgetError` with an example when the text can't be read or asks for nothing sensible
        (a speedup below 1, a share above 100 %, a pattern with n > m).
        """
        if isinstance(text, Budget):
            return text
        limits: list[Limit] = []
        pattern: Pattern | None = None
        for part in str(text).replace(" ", "").split(","):
            name, equals, amount = part.partition("=")
            if not equals or not name or not amount:
                raise BudgetError(f"budget {text!r} was not understood: {_EXAMPLE}")
            name = _NAMES.get(name.lower(), name.lower())
            if name == "pattern":
                pattern = _parse_pattern(amount, text)
            else:
                limits.append(_parse_limit(name, amount, text))
        measures = [limit.measure for limit in limits]
        if len(set(measures)) < len(measures):
            raise BudgetError(f"budget {text!r} limits one measure twice: give each measure once")
        return cls(tuple(limits), pattern)

    @classmethod
    def of(cls, limits: Mapping[str, float]) -> Budget:
        """From absolute limits by measure, as `absolute` gives them."""
        return cls(tuple(Limit(measure, limit) for measure, limit in limits.items()))

    def __getitem__(self, measure: str) -> Limit:
        for limit in self.limits:
            if limit.measure == measure:
                return limit
        raise BudgetError(f"budget {self.brief()} does not limit {measure}: add {measure}=...")

    def __contains__(self, measure: object) -> bool:
        return any(limit.measure == measure for limit in self.limits)

    def absolute(self, whole: Mapping[str, float]) -> dict[str, float]:
        """Measure -> absolute limit. `whole` is the cost of the uncut subject in each measure."""
        missing = [limit.measure for limit in self.limits if limit.measure not in whole]
        if missing:
            known = ", ".join(sorted(whole)) or "none"
            such = f": limit one of them, such as {'params' if 'params' in whole else min(whole)}=50%" if whole else ""
            raise BudgetError(f"budget {self.brief()}: {missing[0]} has no cost here; costs known: {known}{such}")
        return {limit.measure: limit.absolute(whole[limit.measure]) for limit in self.limits}

    def __str__(self) -> str:
        parts = [str(limit) for limit in self.limits]
        return ",".join(parts + ([str(self.pattern)] if self.pattern else []))

    def brief(self) -> str:
        """For people, as a message has it: see `Limit.brief`. Names of results and folders have all digits (`str`)."""
        return ",".join([limit.brief() for limit in self.limits] + ([str(self.pattern)] if self.pattern else []))


def _parse_pattern(amount: str, text: object) -> Pattern:
    match = re.fullmatch(r"([0-9]+):([0-9]+)", amount)
    if not match or not 0 < int(match[1]) <= int(match[2]):
        raise BudgetError(f"budget {text!r}: a pattern is n:m with 0 < n <= m, such as pattern=2:4")
    return Pattern(int(match[1]), int(match[2]))


def _parse_limit(name: str, amount: str, text: object) -> Limit:
    match = _NUMBER.fullmatch(amount.lower())
    if not match:
        raise BudgetError(f"budget {text!r} was not understood: {_EXAMPLE}")
    value, unit = float(match[1]), match[2]
    if name == "speedup":
        if unit not in ("", "x"):
            raise BudgetError(f"budget {text!r}: a speedup is a factor such as speedup=2x")
        if not 1.0 < value < math.inf:
            raise BudgetError(f"budget {text!r}: a speedup must be above 1, such as speedup=2x")
        return Limit("latency", 1.0 / value, relative=True)
    if unit == "%":
        value, relative = value / 100.0, True
    elif unit == "" and (value < 1.0 or (value == 1.0 and not amount.isdecimal())):
        relative = True  # 0.5 and 1.0 are shares; 1 is one unit, as 2 is two
    else:
        scale = _UNIT_TABLES.get(name, _SCALE)
        if unit not in scale and unit != "":
            raise BudgetError(f"budget {text!r}: unit {unit!r} is not one of {', '.join(u for u in scale if u)}")
        if unit == "" and name in _UNIT_TABLES:
            raise BudgetError(f"budget {text!r} needs a unit: one of {', '.join(scale)} or %")
        value, relative = value * scale[unit], False
    if not 0.0 < value < math.inf:
        raise BudgetError(f"budget {text!r}: the amount must be above 0")
    if relative and value > 1.0:
        raise BudgetError(f"budget {text!r} asks to keep more than there is: give at most 100%")
    return Limit(name, value, relative)


# ------------------------------------------------------------------------------------------------------ units


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One place where units of one kind can go: `count` units, described by columns, not objects.

    cost:     measure -> [count], what each unit adds (for units that differ, such as blocks of a page)
    table:    measure -> [count + 1], what keeping k units costs (for measured costs, such as seconds)
    group:    [count] integers or None. Ranking works inside a group and keeps equally many in each
              (query heads of one KV group)
    coupled:  [count] integers or None. Units with one number go or stay together
    fixed:    [count] booleans or None. True: must stay
    owner:    (site, [count] indices) or None. Unit i goes when unit indices[i] of that site goes
              (heads with their layer)
    multiple: kept counts are multiples of this (or 0 where `minimum` is 0)
    minimum:  fewest units that may stay
    frozen:   True: not to be selected from here; whole unless its owners go
    """

    name: str
    count: int
    cost: Mapping[str, Array] = field(default_factory=dict)
    table: Mapping[str, Array] = field(default_factory=dict)
    group: Array | None = None
    coupled: Array | None = None
    fixed: Array | None = None
    owner: tuple[str, Array] | None = None
    multiple: int = 1
    minimum: int = 0
    frozen: bool = False

    @property
    def kind(self) -> str:
        """The last part of the name: "neurons" for "layers.3.neurons"."""
        return self.name.rsplit(".", 1)[-1]


@dataclass(frozen=True, slots=True)
class Term:
    """One monomial of a cost: `coefficient` times the kept counts of `sites`.

    A weight matrix of a network costs rows x columns, and both may shrink: a product of two sites.
    A site may stand twice (a square matrix). The term vanishes when a site in `present` keeps nothing,
    or when one of `units`, (site, index) pairs, goes: a layer's norm leaves with the layer. It is divided by the kept
    counts of the sites in `per` (0 where one keeps nothing): what a token passes of the experts of a layer.
    """

    measure: str
    coefficient: float
    sites: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    units: tuple[tuple[str, int], ...] = ()
    per: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """What could go, and what it costs: sites by name, and the terms that tie their costs together."""

    sites: Mapping[str, Site]
    terms: tuple[Term, ...] = ()
    base: Mapping[str, float] = field(default_factory=dict)
    """Cost of all that can't go, per measure, beside `terms`."""

    def __getitem__(self, name: str) -> Site:
        return self.sites[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def free(self) -> tuple[Site, ...]:
        """The sites that may be selected from."""
        return tuple(site for site in self.sites.values() if not site.frozen)

    def only(self, *kinds: str) -> Units:
        """These units with every site of another kind frozen."""
        sites = {name: replace(site, frozen=site.frozen or site.kind not in kinds) for name, site in self.sites.items()}
        return replace(self, sites=sites)

    def effective(self, keep: Mapping[str, Array]) -> dict[str, Array]:
        """`keep` with ownership applied: what really stays at each site that loses anything."""
        result: dict[str, Array] = {}

        def resolve(name: str) -> Array | None:
            if name not in result:
                own, owner = keep.get(name), self.sites[name].owner
                above = resolve(owner[0]) if owner else None
                if owner and above is not None:
                    inherited = above[owner[1]]
                    own = inherited if own is None else own & inherited
                if own is None:
                    return None
                result[name] = own
            return result[name]

        for name in self.sites:
            resolve(name)
        return result

    def cost(self, keep: Mapping[str, Array] | None = None) -> dict[str, float]:
        """Cost in every measure when `keep` stays (site -> [count] booleans; sites not named stay whole)."""
        stays = self.effective(keep or {})
        kept = {name: int(stays[name].sum()) if name in stays else site.count for name, site in self.sites.items()}
        total: dict[str, float] = dict(self.base)
        for name, site in self.sites.items():
            for measure, column in site.cost.items():
                part = column[stays[name]] if name in stays else column
                total[measure] = total.get(measure, 0.0) + float(part.sum())
            for measure, table in site.table.items():
                total[measure] = total.get(measure, 0.0) + float(table[kept[name]])
        for term in self.terms:  # searches of shapes pass here a thousand times
            count = 1
            for name in term.sites:
                count *= kept[name]
            value = term.coefficient * count
            if term.per:
                value /= math.prod(kept[name] or math.inf for name in term.per)
            if term.present and not all(kept[name] for name in term.present):
                value = 0.0
            if term.units and not all(stays[name][index] for name, index in term.units if name in stays):
                value = 0.0
            total[term.measure] = total.get(term.measure, 0.0) + value
        return total

    def with_table(self, measure: str, tables: Mapping[str, Array], base: float) -> Units:
        """These units with a measured cost: site -> [count + 1], and what the fixed rest costs."""
        sites = {
            name: replace(site, table={**site.table, measure: tables[name]}) if name in tables else site
            for name, site in self.sites.items()
        }
        return Units(sites, self.terms, {**self.base, measure: base})


# -------------------------------------------------------------------------------------------------- selection


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Which units stay (site -> [count] booleans; a site not named stays whole) and what they spend."""

    keep: Mapping[str, Array]
    spent: Mapping[str, float] = field(default_factory=dict)
    budget: Budget | None = None

    def count_kept(self, site: str, count: int) -> int:
        """How many of the site's `count` units stay."""
        return int(self.keep[site].sum()) if site in self.keep else count


class Notes(Sequence[str]):
    """Notes of which some take a while to find out: they are asked for when any is first read, and once only.

    As good as a tuple of them: equal to one, and one after pickling.
    """

    __slots__ = ("_parts",)

    def __init__(self, *parts: str | Callable[[], Iterable[str]]) -> None:
        self._parts = parts

    def _all(self) -> tuple[str, ...]:
        if any(callable(part) for part in self._parts):
            self._parts = tuple(one for part in self._parts for one in (part() if callable(part) else (part,)))
        return tuple(str(part) for part in self._parts)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[str, ...]: ...
    def __getitem__(self, place: int | slice) -> str | tuple[str, ...]:
        return self._all()[place]

    def __len__(self) -> int:
        return len(self._all())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, tuple | Notes) and self._all() == tuple(other)

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return repr(self._all())

    def __reduce__(self) -> tuple[type[tuple[str, ...]], tuple[tuple[str, ...]]]:
        return tuple, (self._all(),)


@dataclass(frozen=True, slots=True)
class Cut:
    """The receipt of a cut: what went where, and the cost before and after as counted on the results."""

    removed: Mapping[str, tuple[int, int]]
    """Site -> (units removed, units there were)."""
    before: Mapping[str, float]
    after: Mapping[str, float]
    notes: tuple[str, ...] | Notes = ()

    @property
    def is_noop(self) -> bool:
        """True when nothing went: never to be reported as a success."""
        return not any(gone for gone, _ in self.removed.values())

    def describe(self) -> str:
        """Per kind of unit how many of how many went, and in how many layers where the others are not named.

        A receipt may leave out what lost nothing: "2 of 2 kv_groups in 1 layer" are not all that the model has. A layer
        with heads of two kinds, its own and those that read an encoder, is one.
        """
        sites: dict[str, list[tuple[int, int]]] = {}
        inside: dict[str, set[str]] = {}
        for site, counts in self.removed.items():
            place, _, kind = site.rpartition(".")
            sites.setdefault(kind, []).append(counts)
            if layer := re.fullmatch(r"(layers\.\d+)(\.[a-z]+)?", place):
                inside.setdefault(kind, set()).add(layer[1])
        parts = []
        for kind, pairs in sites.items():
            gone, count = (sum(numbers) for numbers in zip(*pairs, strict=True))
            many = len(inside.get(kind, ()))
            layers = f" in {many} layer{'s' if many > 1 else ''}" if many else ""
            parts += [f"{gone} of {count} {kind}" + (layers if all(lost for lost, _ in pairs) else "")] if gone else []
        return ", ".join(parts) or "nothing"

    def __repr__(self) -> str:
        costs = [f"{name} {cost:,.0f} -> {self.after[name]:,.0f}" for name, cost in self.before.items()
                 if name in self.after]  # fmt: skip
        return f"Cut({'; '.join([self.describe(), *costs[:3]])})"

    def _repr_html_(self) -> str:
        rows = [(name, f"{cost:,.0f}", f"{self.after[name]:,.0f}") for name, cost in self.before.items()
                if name in self.after]  # fmt: skip
        return html_table(f"Cut: {self.describe()}", ("Measure", "Before", "After"), rows)


def html_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for notebooks; what stands in it is escaped."""
    lines = [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heads)
    return f"<table><caption>{html.escape(title)}</caption><tr>{head}</tr>{''.join(lines)}</table>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How to train. A field that is None is left to the recipe, then to the loop (`recover.training.loop.train`).

    A recipe names its own values in its signature, `training: Training = Training(steps=1000, lr=2e-4)`: the fields
    named there are flags and keywords of their own (`--steps`, `--lr`), all others are set by `--training name=value`.
    Raises `InputError` for a value that makes no sense.
    """

    steps: int | None = None
    """Optimiser steps; none if 0."""
    epochs: float | None = None
    """Passes over the data, where a recipe counts in these."""
    batch: int | None = None
    """Examples or sequences per micro-batch."""
    lr: float | None = None
    """Peak learning rate."""
    min_lr: float | None = None
    """Learning rate at the end of the schedule."""
    warmup: float | None = None
    """Warm-up: a share of the steps below 1, else a number of steps."""
    schedule: str | None = None
    """Course of the learning rate: cosine, cosine-zero, linear, constant or milestones."""
    weight_decay: float | None = None
    """On matrices only; norms and biases are spared."""
    optimizer: str | None = None
    """adamw, adamw8bit (moments in eight bits; needs torchao) or sgd."""
    momentum: float | None = None
    """Of SGD, in Nesterov's form."""
    betas: tuple[float, float] | None = None
    """Of AdamW."""
    lora: int | None = None
    """Rank of adapters (LoRA) that are trained in place of the weights, and merged into them at the end."""
    dora: int | None = None
    """The same for DoRA's adapters, which learn the lengths of rows too."""
    lora_bits: int | None = None
    """8 or 4: what stands beside adapters is held in integers while they learn (needs torchao); floats come out."""
    accumulate: int | None = None
    """Micro-batches per process and step."""
    clip: float | None = None
    """Largest L2 norm of the gradient; infinity for no limit."""
    precision: str | None = None
    """bf16 or fp16 (autocast, weights stay float32), fp32, or auto: bf16 on a GPU that has it."""
    sam: float | None = None
    """Radius rho of sharpness-aware minimisation, such as 0.05: two passes a step, and flatter minima."""
    ema: float | None = None
    """Decay of an average of the weights, such as 0.999: it is what is evaluated and what training ends with."""
    checkpointing: bool | None = None
    """Compute activations inside of blocks again in place of keeping them: less memory, a third more time."""
    compile: bool | None = None
    """Run the student through torch.compile, where it can be."""
    patience: int | None = None
    """Evaluations without a new best after which training stops."""
    validation: float | None = None
    """Share of the training data to judge by and not to learn from; 0.1 where patience asks for it, else none."""
    keep: str | None = None
    """Weights to end with: best (by evaluation; the default with patience or validation) or last."""
    every: int | None = None
    """Steps between checkpoints."""
    evaluate_every: int | None = None
    """Steps between evaluations."""
    teacher_device: str | None = None
    """Where a teacher runs, such as cuda:1; with the student unless given."""
    trackers: tuple[Any, ...] | None = None
    """Names or objects as Accelerate's `log_with` takes them."""

    def __post_init__(self) -> None:
        for name, value in self.named.items():
            setting = _SETTINGS[name]
            if not setting.fits(value):
                raise InputError(f"{name}={value}: give {setting.wanted}")
        if self.lora and self.dora:
            raise InputError(f"lora={self.lora} and dora={self.dora} are two kinds of adapters: give one of them")

    @property
    def named(self) -> dict[str, Any]:
        """Name -> value of the fields that are set."""
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) is not None}

    @property
    def validates(self) -> bool:
        """Whether training is to be judged meanwhile, by data that it does not learn from."""
        return self.patience is not None or self.validation is not None

    @property
    def adapter_bits(self) -> int:
        """Bits of each weight beside adapters, 0 for floats; raises `InputError` where no adapters are asked for."""
        if self.lora_bits and not (self.lora or self.dora):
            raise InputError(f"lora_bits={self.lora_bits} is of what adapters stand beside: give lora or dora, too")
        return self.lora_bits or 0

    def whole(self, name: str) -> int:
        """The value of a field that counts something; raises `InputError` where it is not set."""
        return int(self.number(name))

    def number(self, name: str) -> float:
        """The value of a field that is a number; raises `InputError` where it is not set."""
        value = getattr(self, name)
        if value is None:
            raise InputError(f"training needs {name}: give Training({name}=...)")
        return float(value)

    def default(self, **values: Any) -> Training:
        """The same, with `values` for fields that are not set."""
        return replace(self, **{name: value for name, value in values.items() if getattr(self, name) is None})

    def merge(self, given: Training | str | Sequence[str] | Mapping[str, Any]) -> Training:
        """The same, with the fields that `given` sets: another `Training`, a mapping, or "accumulate=4,precision=bf16".

        Raises `InputError` for a name that is no field, or a value that can't be read.
        """
        if isinstance(given, Training):
            return replace(self, **given.named)
        pairs = dict(given) if isinstance(given, Mapping) else _pairs(given)
        values = dict[str, Any]()
        for name, value in pairs.items():
            if name not in _SETTINGS:
                raise InputError(f"training has no setting {name!r}: it has {', '.join(sorted(_SETTINGS))}")
            setting = _SETTINGS[name]
            try:
                values[name] = setting.read(value)
                replace(self, **{name: values[name]})
            except (TypeError, ValueError, KeyError, OverflowError, InputError) as error:
                raise InputError(f"training setting {name}={value}: give {setting.wanted}") from error
        return replace(self, **values)


def _pairs(given: str | Sequence[str]) -> dict[str, str]:
    parts = parse_list(given)
    if any("=" not in part for part in parts):
        raise InputError(f"training {given!r}: write name=value, separated by commas, such as accumulate=4,patience=3")
    return {name.strip(): value.strip() for name, _, value in (part.partition("=") for part in parts)}


def _whole(value: Any) -> int:
    if isinstance(value, float) and not value.is_integer():  # of which `int` would cut something off
        raise ValueError(value)
    return int(value)


def _switch(value: Any) -> bool:
    switches = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    return switches[str(value).lower()]


def _limit(value: Any) -> float:
    return math.inf if value is None or str(value).lower() == "none" else float(value)


def _names(value: Any) -> tuple[Any, ...]:
    return tuple(value.split("+")) if isinstance(value, str) else tuple(value)


class _Setting(NamedTuple):
    """A field of `Training`: how its value is read from a text, which values fit, and how these are described."""

    read: Callable[[Any], Any]
    fits: Callable[[Any], bool]
    wanted: str


def _counts(least: int) -> _Setting:
    fits = lambda value: isinstance(value, int) and value >= least  # noqa: E731
    return _Setting(_whole, fits, f"a whole number of at least {least}")


def _choice(*names: str) -> _Setting:
    return _Setting(str, lambda value: value in names, f"{', '.join(names[:-1])} or {names[-1]}")


_SWITCH = _Setting(_switch, lambda value: isinstance(value, bool), "true or false")
_AMOUNT = _Setting(float, lambda value: 0 <= value < math.inf, "a number of at least 0")
_SETTINGS = {
    "steps": _counts(0),
    **dict.fromkeys(("batch", "accumulate", "patience", "every", "evaluate_every", "lora", "dora"), _counts(1)),
    **dict.fromkeys(("epochs", "lr", "min_lr", "warmup", "weight_decay", "momentum"), _AMOUNT),
    "lora_bits": _Setting(_whole, lambda value: value in (4, 8), "8 or 4"),
    "schedule": _choice("cosine", "cosine-zero", "linear", "constant", "milestones"),
    "optimizer": _choice("adamw", "adamw8bit", "sgd"),
    "ema": _Setting(float, lambda value: 0 < value < 1, "a number between 0 and 1, such as 0.999"),
    **dict.fromkeys(("checkpointing", "compile"), _SWITCH),
    "validation": _Setting(float, lambda value: 0 < value < 1, "a share between 0 and 1"),
    "keep": _choice("best", "last"),
    "sam": _Setting(float, lambda value: 0 < value < math.inf, "a number above 0, such as 0.05"),
    "precision": _choice("auto", "bf16", "fp16", "fp32"),
    "betas": _Setting(lambda value: tuple(map(float, parse_list(value))), lambda value: len(value) == 2, "two numbers"),
    "teacher_device": _Setting(str, lambda value: isinstance(value, str) and value != "", "a device, such as cuda:1"),
    "clip": _Setting(_limit, lambda value: value > 0, "a number above 0, or none for no limit"),
    "trackers": _Setting(_names, lambda value: isinstance(value, list | tuple), "names, joined by +"),
}


@dataclass(frozen=True, slots=True)
class Recovery:
    """What training after the cut took and gave. `losses` are (step, value), thinned to a few hundred points."""

    steps: int = 0
    tokens: int = 0
    """Tokens seen, or examples where there are no tokens."""
    seconds: float = 0.0
    flops: float = 0.0
    """Training FLOPs with the teacher's forward passes counted."""
    losses: tuple[tuple[int, float], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recovery:
        """From the plain data that JSON gives back."""
        losses = tuple((int(step), float(loss)) for step, loss in data.get("losses", ()))
        return cls(**{**data, "losses": losses})


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured number: value, interval and how many samples it stands on."""

    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""
    samples: int = 1

    def __str__(self) -> str:
        text = f"{self.value:.4g}"
        if self.low is not None and self.high is not None:
            text += f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{text} {self.unit}".strip()


@dataclass(frozen=True, slots=True)
class Evidence:
    """Target, predicted and measured, before and after, baselines at the same budget: side by side, in one file."""

    recipe: str
    target: str
    predicted: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, Figure] = field(default_factory=dict)
    before: Mapping[str, Figure] = field(default_factory=dict)
    after: Mapping[str, Figure] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)
    cut: Cut | None = None
    recovery: Recovery | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    verdict: str = ""
    """`met`, `missed: why` or `failed: why`."""
    stages: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)
    """Name -> figures of a model on the way to the result, in their order."""

    def __repr__(self) -> str:
        figures = "".join(f", {name} {figure}" for name, figure in self.measured.items())
        return f"Evidence({self.recipe}, {self.target}: {self.verdict or 'not judged'}{figures})"

    def _repr_html_(self) -> str:
        names = dict.fromkeys((*self.predicted, *self.before, *self.after, *self.measured))
        rows = []
        for name in names:
            predicted = f"{self.predicted[name]:.4g}" if name in self.predicted else ""
            after = self.measured.get(name) or self.after.get(name)
            rows.append((name, str(self.before.get(name, "")), predicted, "" if after is None else str(after)))
        title = f"{self.recipe}, {self.target}: {self.verdict or 'not judged'}"
        return html_table(title, ("Measure", "Before", "Predicted", "Measured"), rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evidence:
        """The inverse of `to_dict`, also after a trip through JSON."""

        def figures(part: Mapping[str, Any]) -> dict[str, Figure]:
            return {name: Figure(**value) for name, value in part.items()}

        values = dict(data)
        for name in ("measured", "before", "after"):
            values[name] = figures(values.get(name) or {})
        for name in ("baselines", "stages"):
            values[name] = {one: figures(row) for one, row in (values.get(name) or {}).items()}
        if values.get("cut"):
            cut = dict(values["cut"])
            cut["removed"] = {name: (int(pair[0]), int(pair[1])) for name, pair in cut["removed"].items()}
            cut["notes"] = tuple(cut.get("notes", ()))
            values["cut"] = Cut(**cut)
        if values.get("recovery"):
            values["recovery"] = Recovery.from_dict(values["recovery"])
        return cls(**values)


@runtime_checkable
class Subject(Protocol):
    """The thing being pruned. Nothing else in the code depends on what it is."""

    def units(self, *axes: str) -> Units:
        """What could go, on these axes (all axes if none is named)."""
        ...

    def cut(self, selection: Selection) -> tuple[Subject, Cut]:
        """A new subject with the selection made real, and the receipt; this one stays as it is."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What a recipe yields for one budget; whoever called it measures, saves and reports."""

    name: str
    """Short name of the budget, fit for a folder: "speedup=2x"."""
    subject: Subject
    cut: Cut
    predicted: Mapping[str, float] = field(default_factory=dict)
    recovery: Recovery | None = None
    notes: tuple[str, ...] = ()
    beside: Mapping[str, Subject] = field(default_factory=dict)
    """Name -> a rival at the same budget, of the kind of `subject`: measured as it is but for time, and not saved."""
    patterns: Mapping[str, Pattern] = field(default_factory=dict)
    """Matrix -> the n:m it was given, where a budget's pattern is the mean of several; all matrices, if any."""
    judged: Mapping[str, Any] = field(default_factory=dict)
    """Name -> more held-out data, as the run's: what both models are worth on it is told as "name/perplexity"."""
    stages: Mapping[str, Subject] = field(default_factory=dict)
    """Name -> a model on the way to `subject`, of its kind: measured as it is but for time. The recipe has saved it."""
