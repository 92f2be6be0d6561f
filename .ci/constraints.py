"""Writes the versions installed here into a constraints file, in place of those of the same Python.

  python .ci/constraints.py constraints.txt

A line holds for one version of Python, as in: jax==0.10.2 ; python_version == "3.11".
"""

import importlib.metadata
import pathlib
import sys

path = pathlib.Path(sys.argv[1])
here = f'python_version == "{sys.version_info.major}.{sys.version_info.minor}"'
kept = path.read_text().splitlines() if path.exists() else []
found = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
# Lines of packages that are not installed here, such as those of the extra "accelerators", stay.
renewed = lambda line: line.endswith(here) and line.partition("==")[0] in found
kept = [line for line in kept if line and not line.startswith("#") and not renewed(line)]
new = [f"{name}=={version} ; {here}" for name, version in found.items() if name not in ("vdm", "pip")]
text = "# The versions that the tests passed with; `make constraints` renews them.\n"
path.write_text(text + "\n".join(sorted(kept + new)) + "\n")
