"""Sphinx configuration; `make docs` builds with -W, so a warning is an error."""
import pathlib
import re

_basetar = pathlib.Path(__file__).parents[1] / "Tools" / "upstream" / "basetar.py"

project = "RWPython"
release = version = re.search(r'^VERSION = "(.+)"', _basetar.read_text(), re.M)[1]

extensions = []
exclude_patterns = ["_build"]
highlight_language = "none"
nitpicky = True
# The base's own documentation is not part of this project: no link to what it describes.
nitpick_ignore_regex = [(r"(py|c):.*", r"(?!(concurrent\.)?interpreters\b|_PyRWGIL|_PyParcel).*")]

rst_epilog = f".. |base| replace:: CPython {release}\n"

html_theme = "furo"
html_title = f"RWPython on CPython {release}"
html_show_copyright = False
html_copy_source = False
