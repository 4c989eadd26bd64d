"""What runs in the jail's child to compare an exported file with the programs it was made from.

    python -I -B agreed.py FOLDER < request.json

The request is JSON: `spec`, `file` (the exported text, which is run here and nowhere else) and
`functions`, each with `source`, `certificate` and `programs` in base64. FOLDER gets
`agreement.json`, the fields of an `Agreement`.
"""

import base64
import json
import os
import sys
from pathlib import Path


def main(folder: Path, request: bytes) -> None:
    """Compares, and leaves what was found."""
    from nanoevolve_jax.exports.agreement import check_optax
    from nanoevolve_jax.policy.certified import Certified, Code
    from nanoevolve_jax.policy.spec_json import spec_from_json

    asked = json.loads(request)
    functions = [
        Certified(
            each["source"],
            each["certificate"],
            {key: base64.b64decode(text) for key, text in each["programs"].items()},
        )
        for each in asked["functions"]
    ]
    found = check_optax(spec_from_json(asked["spec"]), asked["file"], Code(tuple(functions)))
    (folder / "agreement.json").write_text(json.dumps(found._asdict()), encoding="utf-8")


if __name__ == "__main__":
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    # An isolated Python looks for packages neither here nor where it was started.
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    main(Path(sys.argv[1]), sys.stdin.buffer.read())
