"""A policy as the source of one Python file."""

import keyword
import re
import textwrap
from collections.abc import Sequence

import jinja2

from nanoevolve_jax.exports.features import features_of
from nanoevolve_jax.policy import sensors
from nanoevolve_jax.policy.spec import OptimizerSpec

FRAMEWORKS = ("optax", "torch")
_WIDTH = 88  # of a line, which is what linters take without being told


def module_name(name: str) -> str:
    """A name that Python can import, from the id of a policy."""
    found = re.sub(r"\W", "_", name.lower(), flags=re.ASCII)
    return f"policy_{found}" if not found.isidentifier() or keyword.iskeyword(found) else found


def source_of(spec: OptimizerSpec, framework: str, name: str, about: Sequence[str] = ()) -> str:
    """The file for a framework, with only what the policy uses in it.

    Args:
      spec: the policy, of concrete numbers.
      framework: one of `FRAMEWORKS`.
      name: of the policy.
      about: sentences for the file's docstring, such as where the policy comes from.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nanoevolve_jax", "exports"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # it is Python that is written, not HTML
    )
    return environment.get_template(f"{framework}.py.jinja").render(
        f=features_of(spec),
        sensors=sensors,
        name=name,
        module=f"{module_name(name)}_{framework}",
        about="\n".join(textwrap.fill(_plain(text), _WIDTH) for text in about),
    )


def _plain(text: str) -> str:
    """Text that cannot end the docstring it stands in."""
    return text.replace("\\", "/").replace('"""', "'''")
