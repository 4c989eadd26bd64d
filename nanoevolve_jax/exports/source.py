"""Writes a policy as the source of one Python file, for optax or for PyTorch."""

import ast
import functools
import keyword
import re
import textwrap
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jinja2

from nanoevolve_jax.exports.features import Features, features_of
from nanoevolve_jax.policy import sensors
from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.policy.slots import EXTRA_SENSORS, SLOTS
from nanoevolve_jax.policy.spec import ACTUATORS, Actuators, OptimizerSpec
from nanoevolve_jax.policy.spec_json import SpecError

FRAMEWORKS = ("optax", "torch")
_ARRAYS = {"optax": ("jnp", "jax.nn.sigmoid"), "torch": ("torch", "torch.sigmoid")}
_WIDTH = 88  # of a line: the default of common linters
_INDENT = "    "
_MODULES = ("math", "lax")  # modules that a rewritten function may name and other files lack


class Piece(NamedTuple):
    """A rewritten function in an exported file."""

    slot: str
    certificate: str  # its id
    body: str  # its source, indented once, in a scope of its own so that names cannot clash


def module_name(name: str) -> str:
    """Returns a name that Python can import, from the id of a policy."""
    plain = re.sub(r"\W", "_", name.lower(), flags=re.ASCII)
    return f"policy_{plain}" if not plain.isidentifier() or keyword.iskeyword(plain) else plain


def source_of(
    spec: OptimizerSpec,
    framework: str,
    name: str,
    about: Sequence[str] = (),
    code: Code | None = None,
) -> str:
    """Returns the text of a file that contains only what the policy uses.

    Args:
      spec: Policy of concrete numbers.
      framework: "optax" or "torch".
      name: Name of the policy.
      about: Sentences for the file's docstring, such as the origin of the policy.
      code: Rewritten functions. The file contains the sources of those that the spec calls.

    Raises:
      SpecError: If the policy calls rewritten functions, which are written in JAX, and the
        framework is another one.
    """
    code = code or Code(())
    features = features_of(spec, [function.slot for function in code.functions])
    if features.rewritten and framework != "optax":
        slots = " and ".join(features.rewritten)
        raise SpecError(
            f"--to must be optax or json, got {framework!r}: {name} has {slots} rewritten in JAX"
        )
    pieces = _pieces(code, features.rewritten)
    array_module, sigmoid = _ARRAYS[framework]
    return (
        _environment()
        .get_template(f"{framework}.py.jinja")
        .render(
            f=features,
            framework=framework,
            xp=array_module,
            sigmoid=sigmoid,
            at=_values_at_gate(features),
            rewrites={slot: slot in features.rewritten for slot in SLOTS},
            logs=bool(set(features.signals) - {"alignment"}),
            orthogonal=features.orthogonal != "never" and "direction" not in features.rewritten,
            actuators=ACTUATORS._asdict(),
            actuator_names=Actuators._fields,
            constants=sensors,
            pieces=pieces,
            imports=_imports(pieces),
            dtype=_dtype(code),
            extra_sensors=EXTRA_SENSORS,
            switch_types=_switch_types(),
            name=_plain(name),
            module=f"{module_name(name)}_{framework}",
            about="\n".join(textwrap.fill(_plain(text), _WIDTH) for text in about),
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("nanoevolve_jax", "exports"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # the output is Python, not HTML
    )


def _values_at_gate(features: Features) -> dict[str, str]:
    """Returns the expression of every actuator's value at the gate."""

    def expression(name: str, moves: bool) -> str:
        if "actuate" in features.rewritten:
            return f"actuators.{name}"
        return f"_blend({name.upper()}, gate)" if moves else name.upper()

    return {name: expression(name, dial.moves) for name, dial in features.dials._asdict().items()}


def _pieces(code: Code, slots: Collection[str]) -> tuple[Piece, ...]:
    return tuple(
        Piece(f.slot, f.id, textwrap.indent(ast.unparse(ast.parse(f.source)), _INDENT))
        for f in code.functions
        if f.slot in slots
    )


def _imports(pieces: Sequence[Piece]) -> tuple[str, ...]:
    """Returns the modules among `_MODULES` that the rewritten functions name."""
    trees = [ast.parse(textwrap.dedent(piece.body)) for piece in pieces]
    names = {x.id for tree in trees for x in ast.walk(tree) if isinstance(x, ast.Name)}
    return tuple(name for name in _MODULES if name in names)


def _switch_types() -> dict[str, str]:
    """Returns the dtypes of the knobs of `direction` by name, as `jax.numpy` spells them."""
    knobs: Any = SLOTS["direction"].inputs["knobs"]
    return {name: x.dtype + "_" * (x.dtype == "bool") for name, x in knobs._asdict().items()}


def _dtype(code: Code) -> str:
    """Returns the dtype of the matrix iteration, for which the direction was certified."""
    function = code.of("direction")
    return function.certificate["dtype"] if function else "float32"


def _plain(text: str) -> str:
    """Returns text in one line that cannot end the docstring it is put into."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line.replace("\\", "/").replace('"""', "'''")
