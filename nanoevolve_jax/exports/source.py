"""A policy as the source of one Python file."""

import keyword
import re
import textwrap
from collections.abc import Sequence

import jinja2

from nanoevolve_jax.exports.features import features_of
from nanoevolve_jax.exports.rewritten import imports_of, pieces_of
from nanoevolve_jax.policy import sensors
from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.policy.slots import EXTRA_SENSORS, SLOTS
from nanoevolve_jax.policy.spec import ACTUATORS, OptimizerSpec
from nanoevolve_jax.policy.spec_json import SpecError

FRAMEWORKS = ("optax", "torch")
_WIDTH = 88  # of a line, which is what linters take without being told


def module_name(name: str) -> str:
    """A name that Python can import, from the id of a policy."""
    found = re.sub(r"\W", "_", name.lower(), flags=re.ASCII)
    return f"policy_{found}" if not found.isidentifier() or keyword.iskeyword(found) else found


def source_of(
    spec: OptimizerSpec,
    framework: str,
    name: str,
    about: Sequence[str] = (),
    code: Code | None = None,
) -> str:
    """The file for a framework, with only what the policy uses in it.

    Args:
      spec: the policy, of concrete numbers.
      framework: one of `FRAMEWORKS`.
      name: of the policy.
      about: sentences for the file's docstring, such as where the policy comes from.
      code: rewritten functions; those that the spec reads stand in the file as sources.

    Raises:
      SpecError: if there is code, which is written in JAX, and the framework is another.
    """
    code = code or Code(())
    features = features_of(spec, [f.slot for f in code.functions])
    if features.rewritten and framework != "optax":
        slots = " and ".join(features.rewritten)
        raise SpecError(
            f"--to is {framework!r}, and {name} has {slots} rewritten in JAX; allowed: optax, json"
        )
    pieces = pieces_of(code, features.rewritten)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nanoevolve_jax", "exports"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # it is Python that is written, not HTML
    )
    return environment.get_template(f"{framework}.py.jinja").render(
        f=features,
        pieces=pieces,
        imports=imports_of(code, pieces),
        dtype=_dtype(code),
        ranges=ACTUATORS,
        extra_sensors=EXTRA_SENSORS,
        switch_types=_switch_types(),
        sensors=sensors,
        name=_plain(name),
        module=f"{module_name(name)}_{framework}",
        about="\n".join(textwrap.fill(_plain(text), _WIDTH) for text in about),
    )


def _switch_types() -> dict[str, str]:
    """What `direction` is told its switches as, by name."""
    (*_, knobs) = SLOTS["direction"].arguments((1, 1))
    return {name: f"{x.dtype.name}{'_' * (x.dtype == bool)}" for name, x in knobs._asdict().items()}


def _dtype(code: Code) -> str:
    """Of the iteration: what the direction was certified for."""
    function = code.of("direction")
    return function.certificate["dtype"] if function else "float32"


def _plain(text: str) -> str:
    """Text of one line that can be written and cannot end the docstring it stands in."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line.replace("\\", "/").replace('"""', "'''")
