"""Rewritten functions as StableHLO programs with a certificate.

This module never executes a source. A function consists of one exported program per matrix shape.
All arguments and results of a program have a leading symbolic axis `lanes`, into which stacks of
matrices and lanes of candidates are folded.
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

from nanoevolve_jax.errors import UserError, must
from nanoevolve_jax.policy.slots import SCALAR, SLOTS, Shape, Slots, shape_key, shapes_of
from nanoevolve_jax.policy.stablehlo import require_plain

FORMAT = 1
DTYPES = ("float32", "bfloat16")
"""Dtypes of the matrix iteration."""


class CertificateError(UserError):
    """Code that must not be called, because it is damaged or differs from its certificate."""


def digest(content: bytes) -> str:
    """Returns the SHA-256 hash of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Certified:
    """The validated function of one slot.

    Two instances are equal if they have the same certificate. A certificate is a JSON object with
    the fields `format`, `slot`, `dtype` (the dtype of the matrix iteration), `source_sha256`,
    `computation` (a hash that sources with the same computation share), `seed_computation` (that
    hash for the built-in function), `programs`, `checks`, `versions`, `isolation` and `limits`.
    `programs` maps each `shape_key` to `sha256`, `flops`, `bytes`, `memory` and `baseline_flops`,
    the FLOPs of the built-in function.

    Attributes:
      source: Source of the function.
      certificate: Certificate of the function.
      programs: Serialised programs by `shape_key`.
      id: First 16 hexadecimal digits of the SHA-256 hash of the certificate.
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
        """Name of the slot."""
        return self.certificate["slot"]

    @property
    def computation(self) -> str:
        """Hash that all sources with the same computation share."""
        return self.certificate["computation"]

    def require_intact(self) -> None:
        """Checks the source and the programs against the certificate.

        Raises:
          CertificateError: If the certificate has an unknown format, slot or dtype, or if the
            source or a program has another hash. The message names the part.
        """
        slot = self.certificate.get("slot")
        if self.certificate.get("format") != FORMAT or slot not in SLOTS:
            rule = f"have format {FORMAT} and a slot among {', '.join(SLOTS)}"
            given = self.certificate.get("format"), slot
            raise CertificateError(must(f"certificate {self.id}", rule, given))
        if self.certificate.get("dtype") not in DTYPES:  # exported files contain the dtype
            rule, given = f"have dtype {' or '.join(DTYPES)}", self.certificate.get("dtype")
            raise CertificateError(must(f"certificate {self.id}", rule, given))
        if digest(self.source.encode()) != self.certificate["source_sha256"]:
            raise CertificateError(f"the source of certificate {self.id} has another hash")
        for key, facts in self.certificate["programs"].items():
            if digest(self.programs.get(key, b"")) != facts["sha256"]:
                raise CertificateError(
                    f"the program for {key} of certificate {self.id} has another hash"
                )

    def load(self, shape: Shape) -> export.Exported:
        """Returns the program for a matrix shape after checking its hash, operations and types.

        Args:
          shape: Shape of the matrix, (inputs, outputs), or `SCALAR`.

        Returns:
          The exported program.

        Raises:
          CertificateError: If there is no program for the shape, or it fails a check.
        """
        key = shape_key(shape)
        if key not in self.certificate["programs"]:
            raise CertificateError(
                f"certificate {self.id} must have a program for {key}, got programs for "
                f"{', '.join(self.programs)}; validate the code for this model's matrices"
            )
        self.require_intact()
        return _loaded(self.programs[key], self.slot, shape)

    def call(self, shape: Shape, *arguments: Any) -> tuple[jax.Array, ...]:
        """Calls the program for a matrix shape. The call works under any number of `vmap`s.

        Args:
          shape: Shape of the matrix, (inputs, outputs), or `SCALAR`.
          *arguments: Flat arguments of the slot, each with one additional leading axis.

        Returns:
          The flat results, with the same leading axis.

        Raises:
          CertificateError: If there is no program for the shape, or it fails a check.
        """
        return _mapped(self.load(shape), arguments)


@functools.lru_cache(maxsize=256)
def _loaded(program: bytes, slot: str, shape: Shape) -> export.Exported:
    try:
        return _checked(program, slot, shape)
    except CertificateError:
        raise
    except Exception as error:  # a damaged program can raise any exception
        raise CertificateError(f"a program of slot {slot} cannot be read: {error!r}") from None


def _checked(program: bytes, slot: str, shape: Shape) -> export.Exported:
    exported = export.deserialize(bytearray(program))
    contract = SLOTS[slot]
    wanted = jax.tree.leaves(contract.arguments(shape)), contract.results(shape)
    actual = exported.in_avals, exported.out_avals
    for side, expected, given in zip(("argument", "result"), wanted, actual, strict=True):
        if [_described(x, 0) for x in expected] != [_described(x, 1) for x in given]:
            raise CertificateError(
                f"the {side}s of a program of slot {slot} must be "
                f"{[_described(x, 0) for x in expected]}, got {[str(x) for x in given]}"
            )
    if exported.nr_devices != 1 or exported.ordered_effects or exported.unordered_effects:
        raise CertificateError(f"a program of slot {slot} must not have effects")
    require_plain(exported.mlir_module(), CertificateError)
    return exported


def _described(array: Any, mapped_axes: int) -> tuple[Any, ...]:
    return (tuple(array.shape[mapped_axes:]), jnp.dtype(array.dtype).name)


def _mapped(exported: export.Exported, arguments: tuple[Any, ...]) -> tuple[jax.Array, ...]:
    """Calls a program and folds every `vmap` around the call into its leading axis."""

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
    """The rewritten functions of one policy, at most one per slot, ordered by slot."""

    functions: tuple[Certified, ...]

    @property
    def id(self) -> str:
        """Id of the combination; 16 hexadecimal digits."""
        return digest(" ".join(f.id for f in self.functions).encode())[:16]

    @property
    def computation(self) -> tuple[tuple[str, str], ...]:
        """Slot and computation of each function."""
        return tuple((f.slot, f.computation) for f in self.functions)

    def of(self, slot: str) -> Certified | None:
        """Returns the function of a slot, or None if the slot is not rewritten."""
        return next((f for f in self.functions if f.slot == slot), None)

    def replaced(self, function: Certified) -> "Code":
        """Returns a copy in which a function replaces the one of the same slot, if any."""
        others = {f.slot: f for f in self.functions} | {function.slot: function}
        return Code(tuple(others[name] for name in sorted(others)))

    def require(self, matrices: Iterable[tuple[int, int]]) -> None:
        """Checks that there is a program for every matrix of a model.

        Args:
          matrices: Shape (inputs, outputs) of every matrix.

        Raises:
          CertificateError: If a program is missing or damaged. The message names the first one.
        """
        matrices = list(matrices)
        for function in self.functions:
            for shape in shapes_of(function.slot, matrices):
                function.load(shape)

    def slots(self) -> Slots:
        """Returns the functions in the form that `evolved_muon` takes."""
        return Slots(**{f.slot: _caller(f) for f in self.functions})


def code_to_json(code: Code) -> dict[str, str]:
    """Returns the ids of the certificates by slot."""
    return {f.slot: f.id for f in code.functions}


def code_from_json(
    document: Mapping[str, str] | None, find: Callable[[str], Certified] | None
) -> Code | None:
    """Returns the code of a JSON document.

    Args:
      document: Ids of certificates by slot, see `code_to_json`.
      find: Function that returns the certified function with a given id. None is allowed only if
        the document is empty.

    Returns:
      The code, or None if the document is empty or None.

    Raises:
      CertificateError: If `find` is None, or a slot has the code of another slot.
    """
    if not document:
        return None
    if find is None:
        raise CertificateError(
            f"code {sorted(document.values())} is missing; name a run folder that has it"
        )
    code = Code(tuple(find(document[slot]) for slot in sorted(document)))
    if code_to_json(code) != dict(document):
        raise CertificateError(f"code {dict(document)} names other slots than its certificates")
    return code


def _flat(slot: str, shape: Shape, arguments: tuple[Any, ...]) -> list[jax.Array]:
    """Flattens the arguments and casts them to the dtypes of the contract."""
    wanted = SLOTS[slot].arguments(shape)
    return [
        jnp.asarray(x).astype(like.dtype)
        for x, like in zip(jax.tree.leaves(arguments), jax.tree.leaves(wanted), strict=True)
    ]


def _caller(function: Certified) -> Callable[..., Any]:
    """Returns a function that has the signature of the slot and calls the program."""
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
    """Returns the additional FLOPs per step of code, relative to the built-in functions.

    Args:
      code: Rewritten functions.
      matrices: Shape (inputs, outputs) of every matrix of the model.

    Returns:
      Difference in FLOPs; negative if the code costs less.
    """
    total = 0.0
    for function in code.functions:
        for shape in matrices if SLOTS[function.slot].takes_matrix else [SCALAR]:
            facts = function.certificate["programs"][shape_key(shape)]
            total += facts["flops"] - facts["baseline_flops"]
    return total
