"""What the programs here share: the addresses that they are given, and how they tell what they saw."""

import json
import sys
from importlib.metadata import version

base, runtime = sys.argv[1:]
"""The service's address, and that of SageMaker's runtime in front of it."""


def tell(packages, **seen):
    """Print it, and the versions of what was used."""
    print(json.dumps({"versions": {name: version(name) for name in packages}, **seen}))
