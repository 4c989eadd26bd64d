"""Certified code of sources that tests trust: checked in this process, without a jail."""

import functools

from nanoevolve_jax.codegen.validation import checks, language
from nanoevolve_jax.codegen.validation.seeds import seed_source
from nanoevolve_jax.policy.certified import FORMAT, Certified, Code, digest
from nanoevolve_jax.policy.slots import SLOTS, shapes_of


@functools.cache
def certified(slot, source, matrices, dtype="float32"):
    """A `Certified` for (inputs, outputs) of matrices; the source is checked like anybody's."""
    language.check(source, slot)
    found = checks.check(source, slot, list(shapes_of(slot, matrices)), dtype, 4.0)
    kept = language.normalised(source)
    programs = {key: program.content for key, program in found.programs.items()}
    certificate = {
        "format": FORMAT,
        "slot": slot,
        "dtype": dtype,
        "source_sha256": digest(kept.encode()),
        "computation": found.computation,
        "seed_computation": found.seed_computation,
        "programs": {
            key: {"sha256": digest(program.content)} | program.facts()
            for key, program in found.programs.items()
        },
        "checks": list(checks.PASSED),
        "versions": {},
        "isolation": "none: a test's own source",
        "limits": {},
    }
    return Certified(kept, certificate, programs)


def code_of_seeds(matrices):
    """All slots filled with the built-in functions."""
    return Code(tuple(certified(slot, seed_source(slot), matrices) for slot in sorted(SLOTS)))
