"""The source of a Python file that implements a policy for optax or for PyTorch."""

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
_WIDTH = 88  # maximum length of a line, the default of common formatters
_INDENT = "    "
_MODULES = ("math", "lax")  # modules that are imported only if a rewritten function uses them


class Piece(NamedTuple):
    """A rewritten function in an exported file."""

    slot: str
    certificate: str  # id of its certificate
    body: str  # source, indented once because it is placed in a scope of its own


def module_name(name: str) -> str:
    """Returns a valid name of a Python module for the id of a policy."""
    plain = re.sub(r"\W", "_", name.lower(), flags=re.ASCII)
    return f"policy_{plain}" if not plain.isidentifier() or keyword.iskeyword(plain) else plain


def source_of(
    spec: OptimizerSpec,
    framework: str,
    name: str,
    about: Sequence[str] = (),
    code: Code | None = None,
) -> str:
    """Returns the text of a Python file with the parts of the optimizer that a policy uses.

    Args:
      spec: Policy of concrete numbers.
      framework: "optax" or "torch".
      name: Name of the policy.
      about: Sentences for the file's docstring, such as the origin of the policy.
      code: Rewritten functions, or None. The file contains the sources of those that have an
        effect.

    Returns:
      The text of the file.

    Raises:
      SpecError: If the framework is not optax and the policy calls rewritten functions, which are
        written in JAX.
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
    """Returns the Python expression for the value of each actuator."""

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
    """Returns the modules of `_MODULES` that the rewritten functions use."""
    trees = [ast.parse(textwrap.dedent(piece.body)) for piece in pieces]
    names = {x.id for tree in trees for x in ast.walk(tree) if isinstance(x, ast.Name)}
    return tuple(name for name in _MODULES if name in names)


def _switch_types() -> dict[str, str]:
    """Returns the names of the `jax.numpy` dtypes of the knobs of `direction`."""
    knobs: Any = SLOTS["direction"].inputs["knobs"]
    return {name: x.dtype + "_" * (x.dtype == "bool") for name, x in knobs._asdict().items()}


def _dtype(code: Code) -> str:
    """Returns the dtype of the matrix iteration for which `direction` was certified."""
    function = code.of("direction")
    return function.certificate["dtype"] if function else "float32"


def _plain(text: str) -> str:
    """Returns text as a single line that cannot end a docstring."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line.replace("\\", "/").replace('"""', "'''")
