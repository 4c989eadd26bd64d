"""Rewritten functions as the rest of the package meets them: StableHLO with a certificate.

Source is never run here. What was compiled elsewhere comes as one exported program a matrix
shape, all of whose arguments and results have a leading symbolic axis `lanes`; stacks of matrices
and lanes of candidates are folded into it.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jax.custom_batching import custom_vmap

from nanoevolve_jax.errors import UserError
from nanoevolve_jax.policy.slots import SCALAR, SLOTS, Shape, Slots, shape_key, shapes_of
from nanoevolve_jax.policy.stablehlo import require_plain

FORMAT = 1
DTYPES = ("float32", "bfloat16")
"""Of the matrix iteration."""


class CertificateError(UserError):
    """Code that must not be called: damaged, exchanged, or not what its certificate says."""


def digest(content: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Certified:
    """One slot's function after validation; equal and hashed by its certificate.

    The certificate is JSON: `slot`, `dtype` (of the iteration), `source_sha256`, `computation` (a
    hash that sources share which compute the same), `programs` (by `shape_key`: `sha256`, `flops`,
    `bytes`, `memory`, and the `baseline_flops` of the built-in function), `checks`, `versions`,
    `isolation`.
    """

    source: str = field(compare=False, repr=False)
    certificate: Mapping[str, Any] = field(compare=False, repr=False)
    programs: Mapping[str, bytes] = field(compare=False, repr=False)
    id: str = field(init=False)

    def __post_init__(self):
        text = json.dumps(self.certificate, sort_keys=True, allow_nan=False)
        object.__setattr__(self, "id", digest(text.encode())[:16])

    @property
    def slot(self) -> str:
        """The name of its slot."""
        return self.certificate["slot"]

    @property
    def computation(self) -> str:
        """A hash that all sources share which compute the same."""
        return self.certificate["computation"]

    def require_intact(self) -> None:
        """Checks source and programs against the certificate.

        Raises:
          CertificateError: naming what differs.
        """
        slot = self.certificate.get("slot")
        if self.certificate.get("format") != FORMAT or slot not in SLOTS:
            raise CertificateError(
                f"certificate {self.id} is of slot {slot!r}, format "
                f"{self.certificate.get('format')!r}; allowed: {', '.join(SLOTS)}, format {FORMAT}"
            )
        if self.certificate.get("dtype") not in DTYPES:  # it is written into exported files
            raise CertificateError(
                f"certificate {self.id} is of dtype {self.certificate.get('dtype')!r}; allowed: "
                f"{', '.join(DTYPES)}"
            )
        if digest(self.source.encode()) != self.certificate["source_sha256"]:
            raise CertificateError(f"the source of certificate {self.id} is not the one it names")
        for key, facts in self.certificate["programs"].items():
            if digest(self.programs.get(key, b"")) != facts["sha256"]:
                raise CertificateError(
                    f"the program for {key} of certificate {self.id} is not the one it names"
                )

    def load(self, shape: Shape) -> export.Exported:
        """The program for a matrix shape, checked again: hash, operations, arguments, results.

        Raises:
          CertificateError: if there is none, or it is not what the certificate says.
        """
        key = shape_key(shape)
        if key not in self.certificate["programs"]:
            raise CertificateError(
                f"certificate {self.id} has programs for {', '.join(self.programs)} and none for "
                f"{key}; allowed: code validated for this model's matrices"
            )
        self.require_intact()
        return _loaded(self.programs[key], self.slot, shape)

    def call(self, shape: Shape, *arguments: Any) -> tuple[jax.Array, ...]:
        """Calls the function on flat arguments with one leading axis; under any `vmap`."""
        return _mapped(self.load(shape), arguments)


@functools.lru_cache(maxsize=256)
def _loaded(program: bytes, slot: str, shape: Shape) -> export.Exported:
    try:
        return _checked(program, slot, shape)
    except CertificateError:
        raise
    except Exception as error:  # of readers of what anybody may have written
        raise CertificateError(f"a program of slot {slot} cannot be read: {error!r}") from None


def _checked(program: bytes, slot: str, shape: Shape) -> export.Exported:
    exported = export.deserialize(bytearray(program))
    contract = SLOTS[slot]
    wanted = jax.tree.leaves(contract.arguments(shape)), contract.results(shape)
    found = exported.in_avals, exported.out_avals
    for side, those, these in zip(("argument", "result"), wanted, found, strict=True):
        if [_described(x, 0) for x in those] != [_described(x, 1) for x in these]:
            raise CertificateError(
                f"a program of slot {slot} has {side}s {[str(x) for x in these]}; "
                f"allowed: those of its contract, {[_described(x, 0) for x in those]}"
            )
    if exported.nr_devices != 1 or exported.ordered_effects or exported.unordered_effects:
        raise CertificateError(f"a program of slot {slot} has effects; allowed: none")
    require_plain(exported.mlir_module(), CertificateError)
    return exported


def _described(array: Any, mapped_axes: int) -> tuple[Any, ...]:
    return (tuple(array.shape[mapped_axes:]), jnp.dtype(array.dtype).name)


def _mapped(exported: export.Exported, arguments: tuple[Any, ...]) -> tuple[jax.Array, ...]:
    """Calls a program; a `vmap` around the call is folded into the axis that it has already."""

    @custom_vmap
    def call(*flat):
        return tuple(exported.call(*flat))

    @call.def_vmap
    def fold(axis_size, in_batched, *flat):
        full = [
            x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
            for x, batched in zip(flat, in_batched, strict=True)
        ]
        rows = full[0].shape[1]
        results = call(*(x.reshape(axis_size * rows, *x.shape[2:]) for x in full))
        unfolded = tuple(x.reshape(axis_size, rows, *x.shape[1:]) for x in results)
        return unfolded, (True,) * len(unfolded)

    return call(*arguments)


@dataclass(frozen=True)
class Code:
    """The rewritten functions of one policy, one a slot at most; ordered by slot."""

    functions: tuple[Certified, ...]

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits that name the combination."""
        return digest(" ".join(f.id for f in self.functions).encode())[:16]

    @property
    def computation(self) -> tuple[tuple[str, str], ...]:
        """What it computes, by slot."""
        return tuple((f.slot, f.computation) for f in self.functions)

    def of(self, slot: str) -> Certified | None:
        """The function in a slot, if it is rewritten."""
        return next((f for f in self.functions if f.slot == slot), None)

    def replaced(self, function: Certified) -> "Code":
        """The code with one slot rewritten."""
        others = {f.slot: f for f in self.functions} | {function.slot: function}
        return Code(tuple(others[name] for name in sorted(others)))

    def require(self, matrices: Iterable[tuple[int, int]]) -> None:
        """Checks that there is a program for every matrix of a model, (inputs, outputs) each.

        Raises:
          CertificateError: naming the first one without, or the first damaged program.
        """
        matrices = list(matrices)
        for function in self.functions:
            for shape in shapes_of(function.slot, matrices):
                function.load(shape)

    def slots(self) -> Slots:
        """Returns the functions to pass to `evolved_muon`."""
        return Slots(**{f.slot: _caller(f) for f in self.functions})


def code_to_json(code: Code) -> dict[str, str]:
    """Certificates' ids by slot."""
    return {f.slot: f.id for f in code.functions}


def code_from_json(
    document: Mapping[str, str] | None, find: Callable[[str], Certified] | None
) -> Code | None:
    """The code of certificates' ids by slot; None for none.

    Args:
      document: see `code_to_json`.
      find: certified code by its id.

    Raises:
      CertificateError: if there is nowhere to find it, or a slot has another slot's code.
    """
    if not document:
        return None
    if find is None:
        raise CertificateError(
            f"code {sorted(document.values())} is not at hand; allowed: a run folder that has it"
        )
    code = Code(tuple(find(document[slot]) for slot in sorted(document)))
    if code_to_json(code) != dict(document):
        raise CertificateError(f"code {dict(document)} names other slots than its certificates")
    return code


def _flat(slot: str, shape: Shape, arguments: tuple[Any, ...]) -> list[jax.Array]:
    """Flat arguments of the contract's dtypes."""
    wanted = SLOTS[slot].arguments(shape)
    return [
        jnp.asarray(x).astype(like.dtype)
        for x, like in zip(jax.tree.leaves(arguments), jax.tree.leaves(wanted), strict=True)
    ]


def _caller(function: Certified) -> Callable[..., Any]:
    """Returns a function with the parameters and results of its slot that calls the program."""
    contract = SLOTS[function.slot]

    def on_matrices(gradient, *arguments):
        stack, shape = gradient.shape[:-2], gradient.shape[-2:]
        size = math.prod(stack)
        rows = [
            x.reshape(size, *x.shape[-2:]) if x.ndim else jnp.broadcast_to(x, (size,))
            for x in _flat(function.slot, shape, (gradient, *arguments))
        ]
        return contract.pack(x.reshape(*stack, *x.shape[1:]) for x in function.call(shape, *rows))

    def on_scalars(*arguments):
        flat = _flat(function.slot, SCALAR, arguments)
        results = function.call(SCALAR, *(x[None] for x in flat))
        bounds = [(leaf.low, leaf.high) for _, leaf in contract.named_results()]
        return contract.pack(
            jnp.clip(x[0], low, high) for x, (low, high) in zip(results, bounds, strict=True)
        )

    return on_matrices if contract.takes_matrix else on_scalars


def code_flops(code: Code, matrices: Sequence[tuple[int, int]]) -> float:
    """FLOPs a step that code costs more than the built-in functions; negative: it costs less.

    Args:
      code: what is rewritten.
      matrices: (inputs, outputs) of every matrix of the model.
    """
    total = 0.0
    for function in code.functions:
        for shape in matrices if SLOTS[function.slot].takes_matrix else [SCALAR]:
            facts = function.certificate["programs"][shape_key(shape)]
            total += facts["flops"] - facts["baseline_flops"]
    return total
