"""A script that shows whether walls stand: it leaves the file `greeting` in its folder."""

import sys
from pathlib import Path

Path(sys.argv[1], "greeting").write_text("hello")
