"""The package interpreters under the name that it has in Python 3.14."""

from interpreters import *
from interpreters import __all__
