"""The README's code runs, and its tables are the code's."""

import re

from nanoevolve_jax.configs.base import SETTINGS

from nanoevolve_jax.policy.spec import FIELDS, Actuators, Sensors


def test_the_example_runs(repository):
    readme = (repository / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert 0 < names["gate"] < 1


def test_every_setting_stands_in_the_table_with_its_default(repository):
    readme = (repository / "README.md").read_text()
    for path, setting in SETTINGS.items():
        assert f"| `{path}` | {setting.default} |" in readme
    for name in (*Sensors._fields, *Actuators._fields):
        assert f"| `{name}` |" in readme
    assert f"has {len(FIELDS)} fields" in readme
